//! The worker of a HAProxy, by a socket: the master's, where `@1` leads to the worker, or a stats socket of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::desired::{BackendName, ServerName, State};
use crate::haproxy::socket::SocketAddress;
use crate::leader::Lease;
use crate::observed::Observed;
use crate::plan::{Action, NewServer};

use super::{AccessError, Runtime, RuntimeServer, WriteError};

/// Backends whose servers are read in parallel.
const CONCURRENCY: usize = 8;
/// For one command of the running process.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The answer to `add server` that means success.
const ADDED: &str = "New server registered.";

/// The answers to `del server` that mean that the process does not have the server any more.
const GONE: &[&str] = &["Server deleted.", "No such server.", "No such backend."];
/// How long HAProxy waits for a server to be free of connections. Most are within some milliseconds; for the others it is
/// tried again.
const REMOVABLE_WAIT: &str = "100ms";

/// The worker behind a socket.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    socket: SocketAddress,
    /// What a command for the worker starts with.
    prefix: &'static str,
    lease: Lease,
}

/// Whether a command of a socket changes nothing. Of any other the lease is asked.
pub(super) fn is_read(command: &str) -> bool {
    ["show ", "wait "].iter().any(|reads| command.starts_with(reads))
}

impl Worker {
    /// Behind a master socket.
    pub(super) fn of_master(socket: SocketAddress, lease: Lease) -> Self {
        Self { socket, prefix: "@1 ", lease }
    }

    /// Behind a stats socket.
    pub(super) fn of_stats(socket: SocketAddress, lease: Lease) -> Self {
        Self { socket, prefix: "", lease }
    }

    /// Sends one command and reads the whole answer. [`AccessError::NotLeading`] if it is more than a read.
    pub(super) async fn command(&self, command: &str) -> Result<String, AccessError> {
        if !is_read(command) {
            self.lease.check().await?;
        }
        let command = format!("{}{command}", self.prefix);
        self.socket.command(&command, COMMAND_TIMEOUT).await.map_err(|source| AccessError::Unavailable {
            what: format!("HAProxy does not answer {command:?}"),
            source: source.into(),
        })
    }

    /// The servers of the process, in the backends that the file has.
    pub(super) async fn servers(&self, observed: &Observed) -> Result<Runtime, AccessError> {
        let backends = observed.backends.values().filter(|backend| backend.section.kind == "backend");
        let names: BTreeSet<String> = backends.map(|backend| backend.section.name.clone()).collect();
        let asked = names.into_iter().map(|name| self.servers_of(name));
        let parts: Vec<Runtime> = stream::iter(asked).buffered(CONCURRENCY).try_collect().await?;
        Ok(Runtime(parts.into_iter().flat_map(|part| part.0).collect()))
    }

    /// The servers of a backend; none if the process lacks it.
    ///
    /// Never those of all backends in one answer: HAProxy 3.2.26 loses its worker some time after an answer to this
    /// command that does not fit its buffer (16 kB, about 150 servers) and whose reader is gone before the end. Every
    /// reload ends the master's connections, and so does the end of this program. (HAProxy's commits 282ac06d8, which
    /// brought the fault, and 2d5ef608e, which mends it.)
    async fn servers_of(&self, backend: String) -> Result<Runtime, AccessError> {
        let command = format!("show servers state {backend}");
        let answer = self.command(&command).await?;
        if answer == "Can't find backend." {
            return Ok(Runtime::default());
        }
        parse_servers_state(&answer).ok_or_else(|| AccessError::Unavailable {
            what: format!("HAProxy does not answer {command:?}"),
            source: "the connection ended before the answer, as it does during a reload".into(),
        })
    }

    /// Removes a server that is in maintenance. `false`: HAProxy does not, as somebody is connected to it. Its idle
    /// connections are closed meanwhile.
    pub(super) async fn remove(&self, backend: &BackendName, server: &ServerName) -> Result<bool, AccessError> {
        self.command(&format!("wait {REMOVABLE_WAIT} srv-removable {backend}/{server}")).await?;
        let answer = self.command(&format!("del server {backend}/{server}")).await?;
        let is_gone = GONE.contains(&answer.as_str());
        if !is_gone {
            tracing::debug!(%backend, %server, answer, "the process keeps a server for now");
        }
        Ok(is_gone)
    }

    /// Makes the changes in their order, up to the first one that is refused.
    pub(super) async fn act(&self, actions: &[Action]) -> Result<(), WriteError> {
        for action in actions {
            let (command, is_done) = order(action);
            let answer = self.command(&command).await?;
            if !is_done(&answer) {
                return Err(WriteError::HalfLive { message: format!("{command}: {answer}") });
            }
        }
        Ok(())
    }
}

/// The command for a change, and whether its answer means success: a refusal is text without any code (management
/// guide, 9.3; seen on 3.0, 3.2 and 3.4).
fn order(action: &Action) -> (String, fn(&str) -> bool) {
    match action {
        // Answered with what was changed.
        Action::Address(backend, server, ip, port) => {
            (format!("set server {backend}/{server} addr {ip} port {port}"), |answer| {
                answer.is_empty() || answer.contains("changed") || answer.contains("no need to change")
            })
        }
        Action::State(backend, server, state) => {
            (format!("set server {backend}/{server} state {}", state.as_str()), str::is_empty)
        }
        Action::Weight(backend, server, weight) => {
            (format!("set server {backend}/{server} weight {weight}"), str::is_empty)
        }
        Action::Add(backend, server, new) => {
            let NewServer { address, port, checked: _, options } = new;
            let address = match address {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            };
            (format!("add server {backend}/{server} {address}:{port} {options}"), |answer| answer == ADDED)
        }
        Action::Check(backend, server) => (format!("enable health {backend}/{server}"), str::is_empty),
    }
}

/// Reads `show servers state` by its own header (management guide, 9.3). `None`: it has no header, so it was cut short.
fn parse_servers_state(answer: &str) -> Option<Runtime> {
    let mut columns: Vec<&str> = Vec::new();
    let mut servers = BTreeMap::new();
    for line in answer.lines() {
        if let Some(header) = line.strip_prefix("# ") {
            columns = header.split(' ').collect();
            continue;
        }
        let values: Vec<&str> = line.split(' ').collect();
        let field =
            |name: &str| columns.iter().position(|column| *column == name).and_then(|at| values.get(at).copied());
        let number = |name: &str| field(name).and_then(|value| value.parse::<u16>().ok());
        let (Some(backend), Some(server)) = (field("be_name"), field("srv_name")) else { continue };
        let Some(admin) = number("srv_admin_state") else { continue };
        // Only maintenance and drain that were requested. What is inherited from a tracked server, and what DNS does,
        // belongs to the process; 0x04 only shows what the file had at the start (include/haproxy/server-t.h,
        // SRV_ADMF_*).
        let state = match admin {
            admin if admin & 0x01 != 0 => State::Maint,
            admin if admin & 0x08 != 0 => State::Drain,
            _ => State::Ready,
        };
        // Of a health check the second bit says that there is one, the third that it is on (include/haproxy/check-t.h,
        // CHK_ST_*).
        let check = number("srv_check_state").unwrap_or(0);
        servers.insert(
            (backend.to_owned(), server.to_owned()),
            RuntimeServer {
                address: field("srv_addr").and_then(|address| address.parse().ok()),
                port: number("srv_port").unwrap_or(0),
                state,
                weight: number("srv_uweight"),
                unchecked: check & 0x02 != 0 && check & 0x04 == 0,
            },
        );
    }
    (!columns.is_empty()).then_some(Runtime(servers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_not_known_to_read_is_a_change() {
        for reads in ["show info", "show servers state api", "wait 100ms srv-removable api/api_1"] {
            assert!(is_read(reads), "{reads}");
        }
        for changes in
            ["set server a/b state maint", "add server a/b", "del server a/b", "enable health a/b", "reload", ""]
        {
            assert!(!is_read(changes), "{changes}");
        }
    }

    #[test]
    fn the_servers_state_is_read_by_its_header() {
        // As HAProxy 3.2.26 answered after `set server api/api_1 state ready`.
        let answer = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n3 api 1 api_1 127.0.0.1 0 4 9 100 1 1 0 2 6 0 0 0 - 9010 - 0 0 - - 0\n3 api 2 api_2 127.0.0.1 0 5 5 5 0 1 0 1 6 0 0 0 - 9008 - 0 0 - - 0";
        let runtime = parse_servers_state(answer).expect("a header");
        let server = |name: &str| runtime.0[&("api".to_owned(), name.to_owned())].clone();
        assert_eq!(
            server("api_1"),
            RuntimeServer {
                address: "127.0.0.1".parse().ok(),
                port: 9010,
                state: State::Ready,
                weight: Some(9),
                unchecked: false
            }
        );
        assert_eq!(server("api_2").state, State::Maint);
        assert_eq!(parse_servers_state(""), None);
    }
}
