//! Each tag on real HAProxy: the tag, the configuration that results, and something that HAProxy does only if it works.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{apply, registration, run, stdout, write_catalog};
use crate::support::haproxy::{Haproxy, hand_written, has_backend, matrix};
use crate::support::process::Group;
use crate::support::servers::{Plain, Recorder, Server};
use crate::support::{free_port, tls, wait_for};
use nomad_haproxy::desired::tags::TABLE;
use nomad_haproxy::haproxy::text::ConfigText;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The server behind one instance.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Peer {
    /// An HTTP server that answers with the name of its service and its number: `api-1`.
    Named,
    /// One that keeps what it is sent, and answers with this status.
    Recorder(&'static str),
    /// One that says `hello` to whoever connects.
    Plain,
    /// One with TLS, and a certificate for shop.test that HAProxy's system trusts.
    Tls,
    /// One with TLS, and a certificate that nobody trusts.
    Untrusted,
    /// One that accepts no connection, and refuses none.
    Full,
}

/// What HAProxy does.
#[derive(Debug)]
enum Seen {
    /// It answers requests with this body.
    Answers(&'static str),
    /// There is no backend.
    NotRouted,
    /// It answers a request of this path, which a person's rule sends to their backend.
    AnswersAt(&'static str, &'static str),
    /// A request finds the backend by this name.
    AnswersAs(&'static str, &'static str),
    /// A connection to the frontend that speaks TCP is answered.
    AnswersTcp,
    /// One path goes to one server, and others to the other.
    SpreadsPaths,
    /// The server sees this on one of its connections.
    Server(&'static str),
    /// The same of the server whose port is `$RECORDER`.
    Recorder(&'static str),
    /// The last check ended with this.
    Check(&'static str),
    /// The server is checked often, the one of the other service not.
    ChecksMoreOften(&'static str),
    /// A column of `show stat` for the server.
    Stat(&'static str, &'static str),
    /// Of so many requests the first instance answers so many.
    Share(u32, u32),
    /// Of two requests at a time the server gets one.
    OneAtATime,
    /// A cookie leads back to the same server.
    Sticky,
    /// A request for this path ends with this status before the same request to the other service ends.
    EndsBefore(&'static str, u16, &'static str),
    /// A tunnel is closed before the other service's.
    ClosesBefore(&'static str),
    /// How many servers the backend has where servers are not added at run time.
    Servers(usize),
    /// The server of the instance that comes in a second pass is up, or down, before its check has an answer.
    LaterIsUp(bool),
    /// Requests are answered with this by the instance that comes in a second pass.
    LaterAnswers(&'static str),
    /// A backend that comes in a second pass has its cookie; where HAProxy makes backends, it took no reload.
    LaterSticky,
    /// The state of the server of the instance that leaves in a second pass; `gone`: as the plane has it.
    LaterIs(&'static str),
}

/// One service.
struct Case {
    service: &'static str,
    instances: Vec<(Peer, Vec<&'static str>)>,
    /// Those that come in a second pass.
    later: Vec<(Peer, Vec<&'static str>)>,
    /// Directives of the backend; each has these words, in any order, and perhaps more.
    written: &'static [&'static str],
    seen: Seen,
}

fn case(
    service: &'static str,
    peer: Peer,
    tags: &[&'static str],
    written: &'static [&'static str],
    seen: Seen,
) -> Case {
    Case { service, instances: vec![(peer, tags.to_vec())], later: Vec::new(), written, seen }
}

impl Case {
    fn and(mut self, peer: Peer, tags: &[&'static str]) -> Self {
        self.instances.push((peer, tags.to_vec()));
        self
    }

    fn later(mut self, peer: Peer, tags: &[&'static str]) -> Self {
        self.later.push((peer, tags.to_vec()));
        self
    }

    /// The same instances, all in the second pass.
    fn all_later(mut self) -> Self {
        self.later = std::mem::take(&mut self.instances);
        self
    }
}

const OK: Peer = Peer::Recorder("200 OK");

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    use Peer::{Full, Named, Plain, Recorder, Tls, Untrusted};
    vec![
        case("on", Named, &["enable=true"], &["mode http", "balance roundrobin"], Seen::Answers("on-1")),
        case("off", Named, &["enable=false"], &[], Seen::NotRouted),
        case("elsewhere", Named, &["target=elsewhere"], &[], Seen::NotRouted),
        case("left", Named, &["backend=static"], &[], Seen::NotRouted),
        case("shop", Named, &["backend=custom", "weight=5"], &["server weight 5"], Seen::AnswersAt("/shop", "shop-1")),
        case("long-name", Named, &["backend.name=short"], &[], Seen::AnswersAs("short", "long-name-1")),
        case("db", Plain, &["mode=tcp"], &["mode tcp"], Seen::AnswersTcp),
        case("paths", Named, &["balance=uri"], &["balance uri"], Seen::SpreadsPaths).and(Named, &["balance=uri"]),
        case("spare", Named, &["slots=3"], &[], Seen::Servers(4)),
        case("http", OK, &["check.type=http"], &["option httpchk GET /"], Seen::Server("GET / HTTP/1.0\r\n")),
        case("tcp", OK, &["check.type=tcp"], &["option tcp-check"], Seen::Check("L4OK")),
        case(
            "path",
            OK,
            &["check.path=/ping?x=1&y=(2)"],
            &["option httpchk GET /ping?x=1&y=(2)"],
            Seen::Server("GET /ping?x=1&y=(2) HTTP/1.0\r\n"),
        ),
        case("method", OK, &["check.method=head"], &["option httpchk HEAD /"], Seen::Server("HEAD / HTTP/1.0\r\n")),
        case(
            "host",
            OK,
            &["check.host=api.internal:81"],
            &["http-check send hdr Host api.internal:81"],
            Seen::Server("host: api.internal:81\r\n"),
        ),
        case(
            "status",
            Recorder("418 I am a teapot"),
            &["check.status=400-499", "check.fall=1"],
            &["http-check expect status 400-499"],
            Seen::Check("L7OK"),
        ),
        case("port", Named, &["check.port=$RECORDER", "check.path=/other"], &[], Seen::Recorder("GET /other ")),
        case(
            "rarely",
            OK,
            &["check.interval=1m", "check.path=/c"],
            &["default-server inter 60s"],
            Seen::Answers("rarely-1"),
        ),
        case(
            "often",
            OK,
            &["check.interval=50ms", "check.path=/c"],
            &["default-server inter 50ms"],
            Seen::ChecksMoreOften("rarely"),
        ),
        case(
            "timeout",
            OK,
            &["check.path=/slow", "check.timeout=100ms", "check.interval=3s"],
            &["timeout check 100ms"],
            Seen::Check("L7TOUT"),
        ),
        case("rise", OK, &["check.rise=4"], &["default-server rise 4"], Seen::Stat("check_rise", "4")),
        case("fall", OK, &["check.fall=7"], &["default-server fall 7"], Seen::Stat("check_fall", "7")),
        case("unchecked", OK, &["check.disabled"], &[], Seen::Stat("status", "no check")),
        case(
            "gated",
            Named,
            &["check.init=down", "check.path=/slow", "check.timeout=1m", "check.interval=3s", "slots=1"],
            &[],
            Seen::LaterIsUp(false),
        )
        .later(OK, &["check.init=down", "check.path=/slow", "check.timeout=1m", "check.interval=3s", "slots=1"]),
        case(
            "open",
            Named,
            &["check.init=up", "check.path=/slow", "check.timeout=1m", "check.interval=3s", "slots=1"],
            &[],
            Seen::LaterIsUp(true),
        )
        .later(OK, &["check.init=up", "check.path=/slow", "check.timeout=1m", "check.interval=3s", "slots=1"]),
        case("heavy", Named, &["weight=30"], &["server weight 30"], Seen::Share(40, 30)).and(Named, &["weight=10"]),
        case("reserve", Named, &[], &["server backup"], Seen::Share(10, 10)).and(Named, &["backup"]),
        case("one", OK, &["maxconn=1"], &["server maxconn 1"], Seen::OneAtATime),
        case("drained", Named, &["drain=1h"], &[], Seen::LaterIs("drain")).and(Named, &["drain=1h"]),
        case("undrained", Named, &[], &[], Seen::LaterIs("gone")).and(Named, &[]),
        case(
            "proxy",
            OK,
            &["proxy-protocol=v1"],
            &["server send-proxy"],
            Seen::Server("PROXY TCP4 127.0.0.1 127.0.0.1 "),
        ),
        case(
            "proxy2",
            OK,
            &["proxy-protocol", "check.path=/x"],
            &["server send-proxy-v2"],
            Seen::Server("\r\n\r\n\0\r\nQUIT\n"),
        ),
        case(
            "secure",
            Tls,
            &["ssl", "sni=shop.test", "check.path=/health", "check.fall=1", "check.interval=200ms"],
            &["server ssl verify required ca-file @system-ca sni str(shop.test) check-sni shop.test"],
            Seen::Answers("shop.test"),
        ),
        case(
            "checked",
            Tls,
            &["ssl=true", "sni=shop.test", "check.path=/health", "check.fall=1", "check.interval=200ms"],
            &[],
            Seen::Check("L7OK"),
        ),
        case("untrusted", Untrusted, &["ssl", "check.interval=200ms"], &["server ssl"], Seen::Check("L6RSP")),
        case(
            "unverified",
            Untrusted,
            &["ssl", "ssl.verify=none", "sni=req.hdr(host),field(1,:)"],
            &["server ssl verify none sni req.hdr(host),field(1,:)"],
            Seen::Answers("unverified.test"),
        ),
        case("sticky", Named, &["cookie=SRV"], &["cookie SRV insert indirect nocache"], Seen::Sticky)
            .and(Named, &["cookie=SRV"]),
        case("again", Named, &["cookie=SRV"], &[], Seen::LaterSticky).and(Named, &["cookie=SRV"]).all_later(),
        case("joined", Named, &["weight=0"], &[], Seen::LaterAnswers("joined.test"))
            .later(Untrusted, &["ssl", "ssl.verify=none", "sni=joined.test"]),
        case("full", Full, &["check.disabled"], &[], Seen::NotRouted),
        case(
            "connect",
            Full,
            &["timeout.connect=50ms", "check.disabled"],
            &["timeout connect 50ms"],
            Seen::EndsBefore("/", 503, "full"),
        ),
        case(
            "server",
            OK,
            &["timeout.server=200ms"],
            &["timeout server 200ms"],
            Seen::EndsBefore("/slow", 504, "rarely"),
        ),
        case(
            "queue",
            OK,
            &["timeout.queue=100ms", "maxconn=1"],
            &["timeout queue 100ms"],
            Seen::EndsBefore("/slow", 503, "one"),
        ),
        case("tunnel", OK, &["timeout.tunnel=200ms"], &["timeout tunnel 200ms"], Seen::ClosesBefore("rarely")),
    ]
}

#[test]
fn every_tag_has_a_case() {
    let used: BTreeSet<&str> = cases()
        .iter()
        .flat_map(|case| case.instances.iter().chain(&case.later).flat_map(|(_, tags)| tags.clone()))
        .map(|tag| tag.split('=').next().unwrap())
        .collect();
    // routes.rs has these.
    let of_routes = ["frontend", "domain", "domain.type", "path"];
    let others = TABLE.iter().map(|tag| tag.name).filter(|name| !of_routes.contains(name));
    let missing: Vec<&str> = others.filter(|name| !used.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// A running server of a case.
enum Running {
    Named(Server),
    Recorder(Recorder),
    Plain(Plain),
    /// With the connections that fill it.
    Full((std::net::TcpListener, Vec<std::net::TcpStream>)),
    Shared(u16),
}

impl Running {
    async fn start(peer: Peer, name: &str, tls: [u16; 2]) -> Self {
        match peer {
            Peer::Named => Self::Named(Server::start(name).await),
            Peer::Recorder(status) => Self::Recorder(Recorder::start(name, status).await),
            Peer::Plain => Self::Plain(Plain::saying("hello").await),
            Peer::Tls => Self::Shared(tls[0]),
            Peer::Untrusted => Self::Shared(tls[1]),
            Peer::Full => tokio::task::spawn_blocking(Self::full).await.unwrap(),
        }
    }

    /// Once its backlog is full, the kernel answers no connection any more.
    fn full() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
        let connections = std::iter::from_fn(connect).collect();
        Self::Full((listener, connections))
    }

    fn port(&self) -> u16 {
        match self {
            Self::Named(server) => server.port(),
            Self::Recorder(recorder) => recorder.port(),
            Self::Plain(plain) => plain.port(),
            Self::Full((listener, _)) => listener.local_addr().unwrap().port(),
            Self::Shared(port) => *port,
        }
    }

    fn seen(&self) -> Vec<String> {
        match self {
            Self::Recorder(recorder) => recorder.seen(),
            _ => panic!("it keeps nothing"),
        }
    }
}

/// HAProxy with all cases.
struct Stage {
    rig: Rig,
    way: Way,
    raw: u16,
    running: BTreeMap<&'static str, Vec<Running>>,
    recorder: Recorder,
    _tls: Group,
}

impl Stage {
    async fn start(way: Way, series: &str) -> Self {
        let mut haproxy = Haproxy::prepare(crate::support::haproxy::binary(series).unwrap());
        let raw = free_port();
        tls::certificates(haproxy.folder());
        // What `@system-ca` is for HAProxy.
        let trusted = haproxy.folder().join("trusted");
        std::fs::create_dir(&trusted).unwrap();
        std::fs::copy(haproxy.folder().join("ca.pem"), trusted.join("ca.pem")).unwrap();
        haproxy.environment.push(("SSL_CERT_DIR".to_owned(), trusted.display().to_string()));
        let (group, ports) = tls::server(haproxy.folder());
        std::fs::write(haproxy.config(), config(haproxy.folder(), haproxy.port, raw)).unwrap();
        haproxy.launch().await;
        let rig = Rig::with(way, series, haproxy).await;
        let recorder = Recorder::start("recorder", "200 OK").await;
        let mut running = BTreeMap::new();
        for case in cases() {
            let mut all = Vec::new();
            for (number, (peer, _)) in case.instances.iter().chain(&case.later).enumerate() {
                all.push(Running::start(*peer, &format!("{}-{}", case.service, number + 1), ports).await);
            }
            running.insert(case.service, all);
        }
        Self { rig, way, raw, running, recorder, _tls: group }
    }

    /// Whether what comes in a second pass comes without a reload: after one, all servers start up.
    fn comes(&self, seen: &Seen) -> bool {
        match seen {
            Seen::LaterSticky => self.rig.makes_backends(),
            // It fits no spare server.
            Seen::LaterAnswers(_) => self.way == Way::Local,
            _ => true,
        }
    }

    fn registrations(&self, is_later: bool) -> Vec<Value> {
        let mut all = Vec::new();
        for case in cases() {
            let leaves = is_later && matches!(case.seen, Seen::LaterIs(_));
            let mut instances = case.instances;
            if is_later && self.comes(&case.seen) {
                instances.extend(case.later);
            }
            for (number, (_, tags)) in instances.iter().enumerate().skip(usize::from(leaves)) {
                let recorder = self.recorder.port().to_string();
                let tags: Vec<String> = tags.iter().map(|tag| tag.replace("$RECORDER", &recorder)).collect();
                let is_stated = tags.iter().any(|tag| tag.starts_with("enable"));
                let tags: Vec<&str> =
                    tags.iter().map(String::as_str).chain((!is_stated).then_some("enable=true")).collect();
                let (id, port) = (format!("{}-{number}", case.service), self.running[case.service][number].port());
                all.push(registration(case.service, &id, all.len() as u64 + 1, port, &tags));
            }
        }
        all
    }

    /// The status and the body of an answer, and the cookie that it sets.
    async fn ask(&self, host: &str, path: &str, cookie: Option<&str>) -> (u16, String, Option<String>) {
        let url = format!("http://127.0.0.1:{}{path}", self.rig.haproxy.port);
        let mut request = reqwest::Client::new().get(url).header("Host", format!("{host}.test"));
        if let Some(cookie) = cookie {
            request = request.header("Cookie", cookie);
        }
        let answer = request.send().await.unwrap();
        let set = answer.headers().get("set-cookie").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), answer.text().await.unwrap(), set)
    }

    async fn answers(&self, host: &str, path: &str, body: &str) {
        wait_for(&format!("{body} from {host}{path}"), Duration::from_secs(15), async || {
            let (status, answer, _) = self.ask(host, path, None).await;
            (status == 200 && answer == body).then_some(())
        })
        .await;
    }

    /// A column of `show stat`.
    async fn stat(&self, server: &str, column: &str) -> String {
        let csv = self.rig.haproxy.command("@1 show stat -1 4 -1").await;
        let mut rows = csv::Reader::from_reader(csv.trim_start_matches("# ").as_bytes());
        let headers = rows.headers().unwrap().clone();
        let at = |name: &str| headers.iter().position(|header| header == name).unwrap();
        let (backend, name) = server.split_once('/').unwrap();
        let rows: Vec<csv::StringRecord> = rows.records().map(Result::unwrap).collect();
        let row = rows.iter().find(|row| &row[0] == backend && &row[1] == name);
        row.map_or_else(|| "missing".to_owned(), |row| row[at(column)].to_owned())
    }

    async fn wait_for_stat(&self, server: &str, column: &str, wanted: &str) {
        wait_for(&format!("{server} with {column} {wanted}"), Duration::from_secs(20), async || {
            self.stat(server, column).await.starts_with(wanted).then_some(())
        })
        .await;
    }

    async fn tunnel(&self, host: &str) {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.rig.haproxy.port)).await.unwrap();
        let request =
            format!("GET /tunnel HTTP/1.1\r\nHost: {host}.test\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    }

    /// Whether this HAProxy trusts the test's CA: 3.0 and 3.2 take no `SSL_CERT_DIR`, so there all that can be seen is that
    /// they refuse the certificate.
    fn trusts(&self, case: &Case) -> bool {
        case.instances.iter().all(|(peer, _)| *peer != Peer::Tls) || self.rig.series == "3.4"
    }

    async fn is_sticky(&self, service: &str) {
        let mut first = Vec::new();
        for _ in 0..2 {
            let (_, body, cookie) = self.ask(service, "/", None).await;
            let cookie = cookie.unwrap();
            let number = body.rsplit_once('-').unwrap().1.to_owned();
            first.push((cookie.split(';').next().unwrap().to_owned(), number));
        }
        assert_ne!(first[0].1, first[1].1, "without a cookie they take turns");
        for (cookie, number) in first.iter().flat_map(|one| std::iter::repeat_n(one, 5)) {
            assert!(cookie.starts_with(&format!("SRV={service}_")), "{cookie}");
            let (_, body, set) = self.ask(service, "/", Some(cookie)).await;
            assert_eq!((body, set), (format!("{service}-{number}"), None));
        }
    }

    async fn observe(&self, case: &Case) {
        if !self.trusts(case) {
            let server = format!("{0}/{0}_1", case.service);
            return self.wait_for_stat(&server, "check_status", "L6RSP").await;
        }
        let (service, peers) = (case.service, &self.running[case.service]);
        let server = |number: usize| format!("{service}/{service}_{number}");
        match case.seen {
            Seen::Answers(body) => self.answers(service, "/", body).await,
            Seen::NotRouted => {
                let is_there = has_backend(&self.rig.haproxy.text(), service);
                assert_eq!(is_there, service == "full", "{service}");
            }
            Seen::AnswersAt(path, body) => self.answers(service, path, body).await,
            Seen::AnswersAs(name, body) => self.answers(name, "/", body).await,
            Seen::AnswersTcp => {
                let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.raw)).await.unwrap();
                let mut word = [0; 5];
                stream.read_exact(&mut word).await.unwrap();
                assert_eq!(&word, b"hello");
            }
            Seen::SpreadsPaths => {
                let mut answers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
                for round in 0..40 {
                    let path = format!("/{}", round % 20);
                    let (status, body, _) = self.ask(service, &path, None).await;
                    assert_eq!(status, 200);
                    answers.entry(path).or_default().insert(body);
                }
                assert!(answers.values().all(|bodies| bodies.len() == 1), "{answers:?}");
                assert_eq!(answers.values().flatten().collect::<BTreeSet<_>>().len(), 2, "{answers:?}");
            }
            Seen::Server(text) => {
                wait_for(&format!("{service} to see {text:?}"), Duration::from_secs(15), async || {
                    peers[0].seen().iter().any(|seen| seen.contains(text)).then_some(())
                })
                .await;
                // A request, too: with the PROXY protocol a server that does not expect it would not understand it.
                let (status, body, _) = self.ask(service, "/", None).await;
                assert_eq!((status, body.as_str()), (200, format!("{service}-1").as_str()));
                let requests: Vec<String> =
                    peers[0].seen().into_iter().filter(|seen| seen.contains("GET / HTTP/1.1")).collect();
                if service.starts_with("proxy") {
                    assert!(requests.iter().all(|request| request.starts_with(text)), "{requests:?}");
                }
                assert!(!requests.is_empty());
            }
            Seen::Recorder(text) => {
                wait_for(&format!("the recorder to see {text:?}"), Duration::from_secs(15), async || {
                    self.recorder.seen().iter().any(|seen| seen.contains(text)).then_some(())
                })
                .await;
            }
            Seen::Check(wanted) => self.wait_for_stat(&server(1), "check_status", wanted).await,
            Seen::ChecksMoreOften(other) => {
                let checks = |peer: &Running| peer.seen().iter().filter(|seen| seen.contains("GET /c ")).count();
                wait_for("five checks", Duration::from_secs(15), async || (checks(&peers[0]) >= 5).then_some(())).await;
                let others = checks(&self.running[other][0]);
                assert!(others <= 2, "{others}");
            }
            Seen::Stat(column, wanted) => self.wait_for_stat(&server(1), column, wanted).await,
            Seen::Share(all, first) => {
                let mut count = 0;
                for _ in 0..all {
                    count += u32::from(self.ask(service, "/", None).await.1 == format!("{service}-1"));
                }
                assert!(count.abs_diff(first) <= 1, "{count} of {all}");
            }
            Seen::OneAtATime => {
                let (one, other) = (self.ask(service, "/slow", None), self.ask(service, "/slow", None));
                let status = tokio::select! { answer = one => answer.0, answer = other => answer.0 };
                assert_eq!(status, 503, "it waited for its turn");
                let requests = peers[0].seen().into_iter().filter(|seen| seen.contains("/slow")).count();
                assert_eq!(requests, 1);
            }
            Seen::Sticky => self.is_sticky(service).await,
            Seen::EndsBefore(path, status, other) => {
                // What fills the queue of each, where it has a limit.
                let held = [self.ask(service, path, None), self.ask(other, path, None)];
                let [one, two] = held.map(Box::pin);
                let (mine, theirs) = (self.ask(service, path, None), self.ask(other, path, None));
                tokio::select! {
                    answer = mine => assert_eq!(answer.0, status, "{service}"),
                    answer = one => assert_eq!(answer.0, status, "{service}"),
                    answer = two => panic!("{other} ended first: {answer:?}"),
                    answer = theirs => panic!("{other} ended first: {answer:?}"),
                }
            }
            Seen::ClosesBefore(other) => tokio::select! {
                () = self.tunnel(service) => {}
                () = self.tunnel(other) => panic!("{other} ended first"),
            },
            Seen::Servers(wanted) => {
                let wanted = if self.way == Way::Api { wanted } else { 1 };
                assert_eq!(self.rig.haproxy.running_in(service).await.len(), wanted);
            }
            Seen::LaterSticky => assert!(!has_backend(&self.rig.haproxy.text(), service)),
            Seen::LaterAnswers(_) => {}
            Seen::LaterIsUp(_) | Seen::LaterIs(_) => self.answers(service, "/", &format!("{service}-1")).await,
        }
    }

    async fn observe_later(&self, case: &Case) {
        let service = case.service;
        match case.seen {
            _ if !self.comes(&case.seen) => {}
            Seen::LaterIsUp(is_up) => {
                let is_up = is_up || self.rig.series == "3.0";
                let later = format!("{service}/{service}_2");
                let asked = || self.running[service][1].seen().iter().any(|seen| seen.contains(" /slow "));
                wait_for("the first check", Duration::from_secs(90), async || asked().then_some(())).await;
                let status = self.stat(&later, "status").await;
                assert_eq!(status.starts_with("UP"), is_up, "{service}: {status}");
            }
            Seen::LaterAnswers(body) => self.answers(service, "/", body).await,
            Seen::LaterSticky => self.is_sticky(service).await,
            Seen::LaterIs(wanted) => {
                let wanted = if wanted == "gone" { self.way.gone() } else { wanted };
                assert_eq!(self.rig.haproxy.state(&format!("{service}/{service}_1")).await, wanted);
            }
            _ => {}
        }
    }

    /// Whether the backend has the directives.
    fn is_written(&self, case: &Case) {
        let text = ConfigText::new(&self.rig.haproxy.text());
        let section =
            text.sections().into_iter().find(|section| section.kind == "backend" && section.name == case.service);
        let lines: Vec<Vec<String>> = section
            .iter()
            .flat_map(|section| text.directives(section).map(|(_, directive)| directive.words).collect::<Vec<_>>())
            .collect();
        for wanted in case.written {
            let words: Vec<&str> = wanted.split(' ').collect();
            let has =
                |line: &Vec<String>| line[0] == words[0] && words.iter().all(|word| line.iter().any(|w| w == word));
            assert!(lines.iter().any(has), "{} lacks {wanted:?}: {lines:#?}", case.service);
        }
    }
}

/// By hand, with a frontend for TCP.
fn config(folder: &Path, port: u16, raw: u16) -> String {
    let tcp = format!("frontend raw\n    mode tcp\n    bind 127.0.0.1:{raw}\n    use_backend %[str(db)]\n\n");
    hand_written(folder, port).replace("backend shop\n", &format!("{tcp}backend shop\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tag_does_what_it_says() {
    for series in matrix() {
        for way in WAYS {
            eprintln!("--- HAProxy {series}, {way:?}");
            let stage = Stage::start(way, series).await;
            let (catalog, cases) = (stage.rig.catalog(), cases());
            write_catalog(&catalog, &stage.registrations(false));
            apply(&stage.rig.env(), &catalog).await;
            stage.rig.haproxy.is_valid();
            for case in &cases {
                eprintln!("{}", case.service);
                stage.is_written(case);
                stage.observe(case).await;
            }
            let reloads = stage.rig.haproxy.reloads().await;
            write_catalog(&catalog, &stage.registrations(true));
            apply(&stage.rig.env(), &catalog).await;
            assert_eq!(stage.rig.haproxy.reloads().await, reloads, "all of it comes at run time");
            for case in &cases {
                stage.observe_later(case).await;
            }
            // What was written is what is read: there is nothing left to do.
            let (text, reloads) = (stage.rig.haproxy.text(), stage.rig.haproxy.reloads().await);
            let env = stage.rig.env();
            let arguments = ["plan", "--detailed-exitcode", "--catalog", catalog.to_str().unwrap()];
            let output = run(&env, &arguments).await;
            assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
            apply(&stage.rig.env(), &catalog).await;
            assert_eq!((stage.rig.haproxy.text(), stage.rig.haproxy.reloads().await), (text, reloads));
        }
    }
}
