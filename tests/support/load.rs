//! Requests through HAProxy, and a steady load of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::wait_for;

/// One request for a host; returns the answer's status and body.
pub async fn get(client: &reqwest::Client, port: u16, host: &str) -> Result<(u16, String), String> {
    let request = client.get(format!("http://127.0.0.1:{port}/")).header("Host", host).timeout(Duration::from_secs(10));
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = response.status().as_u16();
    Ok((status, response.text().await.map_err(|error| error.to_string())?.trim().to_owned()))
}

/// Waits until a request for a host is answered as it should be.
pub async fn wait_for_answer(port: u16, host: &str, within: Duration, is_it: impl Fn(&str) -> bool) {
    let client = reqwest::Client::new();
    wait_for(&format!("an answer for {host}"), within, async || {
        let (status, body) = get(&client, port, host).await.ok()?;
        (status == 200 && is_it(&body)).then_some(())
    })
    .await;
}

#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub requests: usize,
    pub failed: Vec<String>,
    pub by_answer: BTreeMap<String, usize>,
}

/// A steady load, until it is stopped.
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    task: JoinHandle<()>,
}

impl Load {
    pub fn start(port: u16, host: &str, per_second: u32) -> Self {
        let host: Arc<str> = host.into();
        Self::over(port, per_second, move || Some(host.clone()))
    }

    /// The host of each request is the next one of these; `None`: it is not sent. A request that is under way holds its
    /// host.
    pub fn over(port: u16, per_second: u32, next: impl Fn() -> Option<Arc<str>> + Send + 'static) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let shared = tally.clone();
        let task = tokio::spawn(async move {
            // A connection for each request: a worker that is replaced closes the idle ones, and a request that is
            // being sent on one at that time fails, whatever the load balancer does.
            let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
            let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
            loop {
                tick.tick().await;
                let Some(host) = next() else { continue };
                let (client, shared) = (client.clone(), shared.clone());
                tokio::spawn(async move {
                    let answer = get(&client, port, &host).await;
                    let mut tally = shared.lock().unwrap();
                    tally.requests += 1;
                    match answer {
                        Ok((200, body)) => *tally.by_answer.entry(body).or_default() += 1,
                        Ok((status, body)) => {
                            let body: String = body.chars().take(60).collect();
                            tally.failed.push(format!("{host}: status {status} {body}"));
                        }
                        Err(error) => tally.failed.push(format!("{host}: {error}")),
                    }
                });
            }
        });
        Self { tally, task }
    }

    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    /// The number of answers since the last call.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *self.tally.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}
