//! The body of a request that is sent for as long as a lease is good.
//!
//! [`Lease::run`] asks whenever the request goes on, but another task, the connection's, writes it: a process that is
//! stopped between the two would send the request when it wakes. That task takes the body right before it writes, and
//! without one it writes nothing and closes the connection.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::leader::{Lease, NotLeading};

pub(super) struct Leased {
    lease: Lease,
    body: reqwest::Body,
}

impl Leased {
    /// Puts the lease before the body of a request, if it has one.
    pub(super) fn put_before(request: &mut reqwest::Request, lease: &Lease) {
        if let Some(body) = request.body_mut().take() {
            *request.body_mut() = Some(reqwest::Body::wrap(Self { lease: lease.clone(), body }));
        }
    }
}

impl Body for Leased {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if !self.lease.is_good() {
            return Poll::Ready(Some(Err(NotLeading::Nameless.into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::poll;
    use reqwest::Method;
    use secrecy::SecretString;
    use serde_json::json;

    use super::super::client::{self, Client, DataplaneConfig};
    use crate::leader::{Scripted, serve};
    use crate::plane::AccessError;

    /// One thread, so that the connection's task does not run until the test waits.
    #[tokio::test]
    async fn a_state_that_was_begun_in_time_is_not_sent_later() {
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = writes.clone();
        let router = axum::Router::new().fallback(async move |method: Method| {
            counted.fetch_add(usize::from(method == Method::PUT), Ordering::SeqCst);
            "{}"
        });
        let (address, _server) = serve(router).await;
        let nomad = Scripted::new().await;
        let config = DataplaneConfig::new(address, "admin", SecretString::from("secret"));
        let client = Client::new(config).expect("a client").leased(nomad.lease());
        let state = || client::Body { json: Some(json!({"admin_state": "drain"})), ..client::Body::default() };
        let path = "/v3/services/haproxy/runtime/backends/web/servers/web_1";
        client.send(Method::PUT, path, &[], state()).await.expect("it leads");
        assert_eq!(writes.load(Ordering::SeqCst), 1);

        let mut late = Box::pin(client.send(Method::PUT, path, &[], state()));
        assert!(poll!(&mut late).is_pending());
        nomad.ago(60);
        // The connection's task runs first.
        client.send(Method::GET, path, &[], client::Body::default()).await.expect("a read");
        assert!(matches!(late.await, Err(AccessError::NotLeading(_))));
        assert_eq!(writes.load(Ordering::SeqCst), 1);
    }
}
