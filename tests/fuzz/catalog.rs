//! Registrations: what Nomad may report, and what it should never report.

use nomad_haproxy::catalog::Registration;
use proptest::prelude::*;
use proptest::sample::select;

/// Names that several steps, and the configuration, have in common.
const SERVICES: &[&str] = &["api", "api", "api", "web-app", "web_app", "shop", "shop", "db"];
/// Names that mean something to HAProxy, in a path, or to us.
const WORDS: &[&str] = &[
    ".",
    "..",
    "...",
    "GLOBAL",
    "MASTER",
    "api_1",
    "backend",
    "default",
    "defaults",
    "description",
    "from",
    "frontend",
    "global",
    "http-errors",
    "if",
    "listen",
    "no",
    "nomad-haproxy:nomad",
    "none",
    "server",
    "theirs",
];
/// Texts that may be in any field.
const HOSTILE: &[&str] = &[
    "",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\0",
    "\u{b}",
    "\u{a0}",
    "\u{2028}",
    "\u{202e}x",
    "\u{10ffe9}",
    "!",
    "\"",
    "#",
    "$HOME",
    "${HOME}",
    "%",
    "%00",
    "%[rand]",
    "'",
    "-",
    "/",
    "\\",
    "a b",
    "a\nserver evil 127.0.0.1:1",
    "a#b",
    "a/b",
    "a\0b",
    "caf\u{e9}",
    "{\"owner\":\"nomad\"}",
    "сервис",
    "サービス",
];
const NAMESPACES: &[&str] = &["default", "default", "default", "default", "team-a", "team-b", "api", "from"];
const ADDRESSES: &[&str] = &[
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "192.168.1.77",
    "2001:db8::5",
    "[2001:db8::6]",
    "::1",
    "::ffff:10.0.0.1",
    "0.0.0.0",
];
const HOSTS: &[&str] = &["db.internal", "host-1.a", "a", "from", "localhost"];
const NO_ADDRESSES: &[&str] = &[
    "127.1",
    "300.1.1.1",
    "fe80::1%eth0",
    "10.0.0.1:80",
    "unix@/tmp/x",
    "/tmp/x",
    "fd@3",
    "ipv4@10.0.0.1",
    "-a.b",
    "host.",
    "${HOME}",
    "[",
    "[]",
    "[::1",
    "10.0.0.1-10.0.0.9",
    "a,b",
    "*",
];
const PORTS: &[i64] = &[-1, 0, 1, 80, 65_535, 65_536, 99_999, i64::MIN, i64::MAX];

const GOOD_TAGS: &[&str] = &[
    "backend=custom",
    "backend=dynamic",
    "backend=static",
    "backend.name=shop",
    "backend.name=shop",
    "backend.name=theirs",
    "backend.name=from",
    "backup",
    "balance=first",
    "balance=hdr(X-User)",
    "balance=leastconn",
    "balance=random",
    "balance=random(3)",
    "balance=roundrobin",
    "balance=source",
    "balance=static-rr",
    "balance=uri",
    "balance=url_param id",
    "check.disabled",
    "check.fall=4",
    "check.host=shop.test",
    "check.host=[::1]:80",
    "check.init=down",
    "check.init=up",
    "check.interval=1500ms",
    "check.interval=3s",
    "check.method=head",
    "check.path=/health",
    "check.path=/a%20b?x=1&y=(2);z=@",
    "check.port=81",
    "check.rise=1",
    "check.status=200-299,401",
    "check.status=204",
    "check.timeout=2s",
    "check.timeout=24h",
    "check.type=http",
    "check.type=tcp",
    "cookie=SRV",
    "cookie=a.b_c-d",
    "domain=a.test",
    "domain=a.test,*.b.test",
    "domain=*.a.b.test",
    "domain=^x[0-9]+$",
    "domain.type=prefix",
    "domain.type=regex",
    "frontend=web",
    "frontend=edge",
    "frontend=shop",
    "path=/x",
    "path=/x/y,/z",
    "drain=1500ms",
    "drain=24h",
    "drain=30s",
    "maxconn=0",
    "maxconn=20",
    "mode=http",
    "mode=tcp",
    "proxy-protocol",
    "proxy-protocol=v1",
    "slots=0",
    "slots=1",
    "slots=3",
    "sni=req.hdr(host),field(1,:)",
    "sni=shop.example.com",
    "ssl",
    "ssl.verify=none",
    "timeout.connect=1s",
    "timeout.queue=1500ms",
    "timeout.server=24h",
    "timeout.tunnel=1h",
    "weight=0",
    "weight=7",
    "weight=256",
];
const BAD_TAGS: &[&str] = &[
    "",
    "=",
    "backend",
    "backend.name",
    "backend.name=",
    "backend.name=.",
    "backend.name=..",
    "backend.name=a b",
    "backend.name=shop from base",
    "backend=mine",
    "balance=random(+3)",
    "balance=random(0)",
    "balance=random(65535)",
    "balance=url_param  id",
    "balance=hdr(",
    "balance=uri depth 3",
    "check.disabled=maybe",
    "check.host=%[rand]",
    "check.interval=0s",
    "check.interval=1ns",
    "check.interval=99999999999999999999s",
    "check.path=/\nserver x",
    "check.path=health",
    "check.port=0",
    "check.rise=101",
    "check.status=999",
    "check.status=200-",
    "cookie=a b",
    "cookie=SRV insert",
    "domain=a b",
    "domain=*",
    "domain.type=glob",
    "frontend=a b",
    "path=x",
    "drain=forever",
    "drain=1year",
    "enable=tru",
    "maxconn=-1",
    "proxy-protocol=v3",
    "sni=env(HOME)",
    "sni=str(a) verify none",
    "ssl.verify=optional",
    "timeout.connect=0",
    "slots=10000",
    "slots=10001",
    "weight=+7",
    "weight=257",
];
const TAG_NAMES: &[&str] = &[
    "backend.name",
    "balance",
    "check.host",
    "check.interval",
    "check.method",
    "check.path",
    "check.status",
    "cookie",
    "domain",
    "drain",
    "frontend",
    "mode",
    "path",
    "weight",
];

/// Any text, of any length that may occur.
pub fn hostile() -> BoxedStrategy<String> {
    prop_oneof![
        4 => select(HOSTILE).prop_map(str::to_owned),
        2 => "(?s).{1,6}",
        1 => "[a-z._%-]{1,12}",
        1 => (select("ab-._0é%/ \n".chars().collect::<Vec<_>>()), lengths()).prop_map(|(c, n)| c.to_string().repeat(n)),
    ]
    .boxed()
}

/// Lengths around every limit: of names (200), of host names (253), of HAProxy's lines.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 180usize..=260, 1 => select(&[60usize, 64, 65, 120, 700, 2100, 5000][..])]
}

fn service() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => select(SERVICES).prop_map(str::to_owned),
        3 => select(WORDS).prop_map(str::to_owned),
        1 => ("[a-z]", 180usize..=250).prop_map(|(c, n)| c.repeat(n)),
        1 => hostile(),
    ]
}

fn namespace() -> impl Strategy<Value = String> {
    prop_oneof![
        15 => select(NAMESPACES).prop_map(str::to_owned),
        1 => ("[a-z]", 1usize..=128).prop_map(|(c, n)| c.repeat(n)),
        1 => hostile(),
    ]
}

fn tag() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => select(GOOD_TAGS).prop_map(|tag| format!("haproxy.{tag}")),
        2 => select(BAD_TAGS).prop_map(|tag| format!("haproxy.{tag}")),
        1 => (select(TAG_NAMES), hostile()).prop_map(|(name, value)| format!("haproxy.{name}={value}")),
        1 => hostile(),
    ]
}

fn enable() -> impl Strategy<Value = Option<&'static str>> {
    let others = &[None, Some("haproxy.enable=false"), Some("haproxy.enable=yes"), Some("haproxy.enable")];
    prop_oneof![12 => Just(Some("haproxy.enable=true")), 1 => select(&others[..])]
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => select(ADDRESSES).prop_map(str::to_owned),
        2 => select(HOSTS).prop_map(str::to_owned),
        2 => select(NO_ADDRESSES).prop_map(str::to_owned),
        1 => hostile(),
    ]
}

/// One registration.
pub fn registration() -> impl Strategy<Value = Registration> {
    let id = prop_oneof![12 => (0u8..6).prop_map(|n| format!("i{n}")), 1 => hostile()];
    let alloc = prop_oneof![12 => Just("0a-1".to_owned()), 1 => hostile()];
    let port = prop_oneof![12 => 1000i64..1004, 1 => select(PORTS)];
    let created = prop_oneof![12 => 0u64..9, 1 => Just(u64::MAX)];
    let tags = (enable(), prop::collection::vec(tag(), 0..4));
    (service(), namespace(), id, alloc, address(), port, created, tags).prop_map(
        |(service_name, namespace, id, alloc_id, address, port, create_index, (enable, tags))| Registration {
            id,
            service_name,
            namespace,
            node_id: String::new(),
            datacenter: String::new(),
            job_id: String::new(),
            alloc_id,
            tags: enable.map(str::to_owned).into_iter().chain(tags).collect(),
            address,
            port,
            create_index,
            modify_index: create_index,
        },
    )
}

/// A whole catalog, small most of the time.
pub fn registrations() -> impl Strategy<Value = Vec<Registration>> {
    prop_oneof![
        20 => prop::collection::vec(registration(), 0..7),
        // A service that scales, or many that share one backend.
        1 => (registration(), 5usize..12, any::<bool>()).prop_map(|(one, count, services)| {
            let copy = |n: usize| {
                let mut copy = one.clone();
                copy.id = format!("i{n}");
                if services {
                    copy.service_name = format!("{}{n}", copy.service_name);
                    copy.tags.push("haproxy.backend.name=shop".to_owned());
                }
                copy
            };
            (0..count).map(copy).collect()
        }),
    ]
    .prop_map(of_one_service_each)
}

/// An ID names its service and cannot be chosen (`_nomad-task-<allocation>-<task>-<service>-<port>`), so no two
/// services have one in common: the one that is listed first keeps it.
fn of_one_service_each(mut list: Vec<Registration>) -> Vec<Registration> {
    for at in 0..list.len() {
        let (before, rest) = list.split_at_mut(at);
        let one = &mut rest[0];
        while before.iter().any(|other| other.id == one.id && other.service() != one.service()) {
            one.id.push('x');
        }
    }
    list
}
