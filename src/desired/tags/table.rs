//! Every tag, once: what reads it, and what the documentation says of it.

use super::value::{duration, flag, host, method, names, needed, number, parsed, path, status};
use super::{BackendTag, CheckType, Enable, Intent};
use crate::desired::{ProxyProtocol, Verify};

/// Whose tag counts, and what it configures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A registration: whether it is routed at all. Each one's own tags count.
    Registration,
    /// A service: which backend it has, and what surrounds it. The tags of the newest registration count.
    Service,
    /// A route to the service: those that any registration asks for. A canary with other tags takes none away.
    Route,
    /// A backend's section. The tags of the newest registration count; they have no effect if the section is not ours.
    Backend,
    /// The health check in a backend's section; as for [`Self::Backend`]. Whether there is a check at all is not
    /// of the section: it holds in any backend, so that is of [`Self::Service`].
    Check,
    /// One server. Each registration's own tags count.
    Server,
}

impl Level {
    /// Whether it configures the backend's section rather than what is in it or around it.
    pub fn is_of_section(self) -> bool {
        match self {
            Self::Backend | Self::Check => true,
            Self::Registration | Self::Service | Self::Route | Self::Server => false,
        }
    }

    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registration => "registration",
            Self::Service => "service",
            Self::Route => "route",
            Self::Backend => "backend",
            Self::Check => "check",
            Self::Server => "server",
        }
    }
}

/// One tag.
#[derive(Debug)]
pub struct Tag {
    /// Its name without the prefix.
    pub name: &'static str,
    /// Whose tag counts.
    pub level: Level,
    /// The values that it takes, in the words of the documentation.
    pub values: &'static str,
    /// What holds without it, in the same.
    pub default: &'static str,
    /// Takes a value into the intent, or says what is allowed. `None`: the tag has no `=`.
    pub(super) take: Take,
}

impl Tag {
    /// Whether it may be there several times; it then takes lists, too.
    pub fn is_repeatable(&self) -> bool {
        ["domain", "path"].contains(&self.name)
    }
}

type Take = fn(&mut Intent, Option<&str>) -> Result<(), String>;

/// Every tag, in the order of the documentation.
pub const TABLE: &[Tag] = &[
    Tag {
        name: "enable",
        level: Level::Registration,
        values: "`true`, `false`",
        default: "`false`",
        take: |intent, value| {
            let enabled = flag(value);
            intent.enable = match enabled {
                Ok(true) => Enable::Yes,
                Ok(false) => Enable::No,
                Err(_) => Enable::Unclear,
            };
            enabled.map(drop)
        },
    },
    Tag {
        name: "target",
        level: Level::Registration,
        values: "names of HAProxys, with commas: it is routed on these only. Where none of them exists, it stays as it \
                 is, with a note",
        default: "all of them",
        take: |intent, value| names(needed(value)?).map(|names| intent.targets = names),
    },
    Tag {
        name: "backend",
        level: Level::Service,
        values: "`dynamic`: made, changed and deleted for you. `custom`: yours; only servers are added, and tags that \
                 would change the backend are ignored. `static`: nothing is done",
        default: "`dynamic`",
        take: |intent, value| {
            intent.backend = match needed(value)? {
                "dynamic" => BackendTag::Dynamic,
                "custom" => BackendTag::Custom,
                "static" => BackendTag::Static,
                _ => return Err("dynamic, custom or static".to_owned()),
            };
            Ok(())
        },
    },
    Tag {
        name: "backend.name",
        level: Level::Service,
        values: "a backend's name. Services of a namespace that name the same one share it: it is set up as the one \
                 that holds it first asks for",
        default: "`api-service` → `api_service`, in another namespace `team_a.api_service`",
        take: |intent, value| needed(value).map(|name| intent.backend_name = Some(name.to_owned())),
    },
    Tag {
        name: "slots",
        level: Level::Service,
        values: "spare servers at least, where servers are not added at run time; 0 turns them off, and each change \
                 reloads",
        default: "`slots.min_free`",
        take: |intent, value| number(value, 0, 10_000).map(|slots| intent.slots = Some(slots)),
    },
    Tag {
        name: "frontend",
        level: Level::Route,
        values: "the frontend of yours that routes to it",
        default: "`haproxy.frontend`",
        take: |intent, value| parsed(value).map(|frontend| intent.routing.frontend = Some(frontend)),
    },
    Tag {
        name: "domain",
        level: Level::Route,
        values: "hosts, with commas, or the tag several times; without case and port. `*.example.com`: all below \
                 `example.com`. With `haproxy.path`, each host has each path: 5000 routes at the most",
        default: "none: no route",
        take: |intent, value| intent.routing.add_domains(value),
    },
    Tag {
        name: "domain.type",
        level: Level::Route,
        values: "how its domains are compared: `exact`; `prefix`: the beginning of a host; `regex`",
        default: "`exact`",
        take: |intent, value| intent.routing.set_type(value),
    },
    Tag {
        name: "path",
        level: Level::Route,
        values: "beginnings of paths, with commas, or the tag several times: `/api` is `/api` and all below it",
        default: "all",
        take: |intent, value| intent.routing.add_paths(value),
    },
    Tag {
        name: "mode",
        level: Level::Backend,
        values: "`http`, `tcp`",
        default: "`http`",
        take: |intent, value| parsed(value).map(|mode| intent.mode = Some(mode)),
    },
    Tag {
        name: "balance",
        level: Level::Backend,
        values: "`roundrobin`, `static-rr`, `leastconn`, `first`, `source`, `random`, `random(N)`, `uri`, `hdr(NAME)`, \
                 `url_param NAME`",
        default: "`roundrobin`",
        take: |intent, value| parsed(value).map(|balance| intent.balance = Some(balance)),
    },
    Tag {
        name: "cookie",
        level: Level::Backend,
        values: "the name of a cookie that HAProxy sets, by which a client stays with its server (`insert indirect \
                 nocache`). Only in mode `http`",
        default: "none",
        take: |intent, value| parsed(value).map(|cookie| intent.cookie = Some(cookie)),
    },
    Tag {
        name: "timeout.connect",
        level: Level::Backend,
        values: "a time from 1ms to 24h: for a connection to a server",
        default: "that of `defaults`",
        take: |intent, value| duration(value).map(|time| intent.timeouts.connect = Some(time)),
    },
    Tag {
        name: "timeout.server",
        level: Level::Backend,
        values: "a time: for data from a server",
        default: "that of `defaults`",
        take: |intent, value| duration(value).map(|time| intent.timeouts.server = Some(time)),
    },
    Tag {
        name: "timeout.queue",
        level: Level::Backend,
        values: "a time: for a place at a server, where `maxconn` limits them",
        default: "that of `defaults`",
        take: |intent, value| duration(value).map(|time| intent.timeouts.queue = Some(time)),
    },
    Tag {
        name: "timeout.tunnel",
        level: Level::Backend,
        values: "a time: for data in either direction on a WebSocket or another tunnel",
        default: "that of `defaults`",
        take: |intent, value| duration(value).map(|time| intent.timeouts.tunnel = Some(time)),
    },
    Tag {
        name: "check.type",
        level: Level::Check,
        values: "`http`, `tcp`",
        default: "`http` as soon as any of the next four is given, else the job's, else `tcp`",
        take: |intent, value| {
            intent.check.kind = Some(match needed(value)? {
                "http" => CheckType::Http,
                "tcp" => CheckType::Tcp,
                _ => return Err("http or tcp".to_owned()),
            });
            Ok(())
        },
    },
    Tag {
        name: "check.path",
        level: Level::Check,
        values: "a path, with its query",
        default: "the job's, else `/`",
        take: |intent, value| path(needed(value)?).map(|path| intent.check.path = Some(path)),
    },
    Tag {
        name: "check.method",
        level: Level::Check,
        values: "`GET`, `HEAD`, `OPTIONS`, `POST`, `PUT`",
        default: "the job's, else `GET`",
        take: |intent, value| method(needed(value)?).map(|method| intent.check.method = Some(method)),
    },
    Tag {
        name: "check.host",
        level: Level::Check,
        values: "a host name, with a port if need be; with it the check speaks HTTP/1.1",
        default: "that of the job's header, else none: HTTP/1.0",
        take: |intent, value| host(needed(value)?).map(|host| intent.check.host = Some(host)),
    },
    Tag {
        name: "check.status",
        level: Level::Check,
        values: "the statuses that pass: `200`, `200-299`, or a list of them with commas",
        default: "2xx and 3xx",
        take: |intent, value| status(needed(value)?).map(|status| intent.check.status = Some(status)),
    },
    Tag {
        name: "check.port",
        level: Level::Check,
        values: "a port",
        default: "the job's if it is static, else the server's own",
        take: |intent, value| number(value, 1, u16::MAX).map(|port| intent.check.timing.port = Some(port)),
    },
    Tag {
        name: "check.interval",
        level: Level::Check,
        values: "a time between two checks, from 1ms to 24h",
        default: "the job's, else 2s (HAProxy's)",
        take: |intent, value| duration(value).map(|interval| intent.check.timing.interval = Some(interval)),
    },
    Tag {
        name: "check.timeout",
        level: Level::Check,
        values: "a time for the answer",
        default: "the job's, else the interval (HAProxy's)",
        take: |intent, value| duration(value).map(|timeout| intent.check.timing.timeout = Some(timeout)),
    },
    Tag {
        name: "check.rise",
        level: Level::Check,
        values: "passing checks until a server is up, 1–100",
        default: "2 (HAProxy's)",
        take: |intent, value| number(value, 1, 100).map(|rise| intent.check.timing.rise = Some(rise)),
    },
    Tag {
        name: "check.fall",
        level: Level::Check,
        values: "failing checks until a server is down, 1–100",
        default: "3 (HAProxy's)",
        take: |intent, value| number(value, 1, 100).map(|fall| intent.check.timing.fall = Some(fall)),
    },
    Tag {
        name: "check.init",
        level: Level::Service,
        values: "`down` (HAProxy ≥ 3.1): a server that is added, or a spare one that is filled, gets no traffic before \
                 its first passing check; `up`",
        default: "`down`; before HAProxy 3.1 `up`",
        take: |intent, value| {
            intent.check.gated = Some(match needed(value)? {
                "down" => true,
                "up" => false,
                _ => return Err("down or up".to_owned()),
            });
            Ok(())
        },
    },
    Tag {
        name: "check.disabled",
        level: Level::Service,
        values: "bare or `true`: no check; `false`",
        default: "`false`",
        take: |intent, value| flag(value).map(|disabled| intent.check.disabled = disabled),
    },
    Tag {
        name: "weight",
        level: Level::Server,
        values: "0–256",
        default: "that of `default-server`, else 1",
        take: |intent, value| number(value, 0, 256).map(|weight| intent.server.weight = Some(weight)),
    },
    Tag {
        name: "maxconn",
        level: Level::Server,
        values: "connections at a time; the others queue",
        default: "that of `default-server`, else no limit",
        take: |intent, value| number(value, 0, 1_000_000).map(|maxconn| intent.server.maxconn = Some(maxconn)),
    },
    Tag {
        name: "backup",
        level: Level::Server,
        values: "bare or `true`: used only when no other server is up; `false`",
        default: "`false`",
        take: |intent, value| flag(value).map(|backup| intent.server.backup = backup),
    },
    Tag {
        name: "proxy-protocol",
        level: Level::Server,
        values: "`v2`, bare or `true`: connections start with the client's address; `v1`: the same as text; `false`. \
                 Checks do so, too, unless they have another port",
        default: "`false`",
        take: |intent, value| {
            intent.server.proxy = match value {
                None | Some("true" | "v2") => Some(ProxyProtocol::V2),
                Some("v1") => Some(ProxyProtocol::V1),
                Some("false") => None,
                Some(_) => return Err("v2, v1, true or false".to_owned()),
            };
            Ok(())
        },
    },
    Tag {
        name: "ssl",
        level: Level::Server,
        values: "bare or `true`: TLS to the server; checks speak it, too, unless they have another port; `false`",
        default: "`false`",
        take: |intent, value| flag(value).map(|ssl| intent.server.ssl = ssl),
    },
    Tag {
        name: "ssl.verify",
        level: Level::Server,
        values: "`required`: the server's certificate must be signed by a CA of HAProxy's system (`@system-ca`), and \
                 be for the name in `sni` if there is one; `none`",
        default: "`required`",
        take: |intent, value| {
            intent.server.verify = Some(match needed(value)? {
                "required" => Verify::Required,
                "none" => Verify::None,
                _ => return Err("required or none".to_owned()),
            });
            Ok(())
        },
    },
    Tag {
        name: "sni",
        level: Level::Server,
        values: "the server name for TLS: a host name, which checks send, too; or, of each request, `req.hdr(NAME)` or \
                 `ssl_fc_sni`, with `,lower`, `,host_only` or `,field(1,:)` behind it",
        default: "none; from HAProxy 3.3 the request's host",
        take: |intent, value| parsed(value).map(|sni| intent.server.sni = Some(sni)),
    },
    Tag {
        name: "drain",
        level: Level::Server,
        values: "a time: when the instance is gone, its server drains that long (clients bound to it stay) before it \
                 is in maintenance",
        default: "in maintenance at once",
        take: |intent, value| duration(value).map(|drain| intent.drain = Some(drain)),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_documentation_has_this_table() {
        // Read when it runs: the image is built without it.
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tags.md")).expect("the page");
        let row = |Tag { name, level, values, default, take: _ }: &Tag| {
            format!("| `haproxy.{name}` | {} | {values} | {default} |\n", level.as_str())
        };
        let rows: String = TABLE.iter().map(row).collect();
        let table = format!("| tag | of the | values | default |\n| --- | --- | --- | --- |\n{rows}\n");
        assert!(page.contains(&table), "docs/tags.md has another table than this:\n\n{table}");
    }

    #[test]
    fn a_name_is_there_once() {
        let names: BTreeSet<&str> = TABLE.iter().map(|tag| tag.name).collect();
        assert_eq!(names.len(), TABLE.len());
    }
}
