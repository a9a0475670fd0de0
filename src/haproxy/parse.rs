//! Our backends and servers, read back from configuration text.
//!
//! The Data Plane API writes the same directives in its own order and spacing; only their meaning is read here.
//! Anything in a section of ours that is not understood is drift: the section is not what was planned.

use std::time::Duration;

use crate::desired::tags::MAX_DURATION;
use crate::desired::{
    Address, BackendSettings, Balance, Check, CookieName, HttpCheck, InstanceId, Mode, Occupant, Owner, ProxyProtocol,
    Server, ServerName, ServerOptions, ServiceKey, Sni, Timeouts, Timing, Tls, Verify,
};

use super::render::{COOKIE_OPTIONS, INIT_ADDR, REDISPATCH_INTERVAL, RETRIES, SYSTEM_CA};
use super::text::Directive;

/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// A server line, ours or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerLine {
    /// One with our owner. `None`: it contains something that we would never write, and must be rewritten.
    Ours(ServerName, Option<Server>),
    /// Not ours.
    Foreign(String),
}

/// Reads the words after `server`, and the comment.
pub fn server(directive: &Directive, owner: &Owner) -> ServerLine {
    let name = directive.words.get(1).cloned().unwrap_or_default();
    let is_ours =
        |data: &serde_json::Value| data.get("owner").and_then(|name| name.as_str()).is_some_and(|name| owner.has(name));
    let ours = metadata(directive).filter(is_ours);
    let (Some(data), Ok(parsed)) = (ours, name.parse::<ServerName>()) else {
        return ServerLine::Foreign(name);
    };
    ServerLine::Ours(parsed.clone(), our_server(parsed, &directive.words[2..], &data))
}

/// Who wrote a server, as its comment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The name of the owner.
    pub owner: String,
    /// Its instance, if it has one.
    pub instance: Option<InstanceId>,
    /// The service of the instance.
    pub service: Option<ServiceKey>,
}

/// Reads the mark of a server line, of any owner.
pub fn mark(directive: &Directive) -> Option<Mark> {
    let data = metadata(directive)?;
    let field = |key: &str| data.get(key).and_then(|value| value.as_str());
    Some(Mark {
        owner: field("owner")?.to_owned(),
        instance: field("id").map(InstanceId::from_metadata),
        service: field("service").and_then(ServiceKey::from_word),
    })
}

fn metadata(directive: &Directive) -> Option<serde_json::Value> {
    serde_json::from_str(directive.comment.as_deref()?).ok()
}

fn our_server(name: ServerName, words: &[String], data: &serde_json::Value) -> Option<Server> {
    let (endpoint, words) = words.split_first()?;
    // The last colon separates the port, with or without brackets (configuration manual, 11.1).
    let (address, port) = endpoint.rsplit_once(':')?;
    let mut server = Server {
        name,
        address: address.parse().ok()?,
        port: port.parse().ok()?,
        check: false,
        cookie: false,
        options: ServerOptions::default(),
        gated: false,
        occupant: occupant(data)?,
    };
    let (mut enabled, mut may_lack_address, mut tls) = (true, false, TlsWords::default());
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "check" => server.check = true,
            "backup" => server.options.backup = true,
            "cookie" if words.next() == Some(server.name.as_str()) => server.cookie = true,
            "send-proxy" => server.options.proxy = Some(ProxyProtocol::V1),
            "send-proxy-v2" => server.options.proxy = Some(ProxyProtocol::V2),
            "enabled" => enabled = true,
            "disabled" => enabled = false,
            "init-addr" if words.next() == Some(INIT_ADDR) => may_lack_address = true,
            "init-state" if words.next() == Some("down") => server.gated = true,
            "weight" => server.options.weight = Some(words.next()?.parse().ok()?),
            "maxconn" => server.options.maxconn = Some(words.next()?.parse().ok()?),
            word => tls.take(word, &mut words)?,
        }
    }
    server.options.tls = tls.into_tls().ok()?.map(Box::new);
    let is_named = matches!(server.address, Address::Host(_));
    (enabled == server.is_enabled() && may_lack_address == is_named).then_some(server)
}

/// The options of a server that belong to TLS, as far as they were read.
#[derive(Default)]
struct TlsWords {
    ssl: bool,
    verify: Option<Verify>,
    system_ca: bool,
    sni: Option<Sni>,
    check_sni: Option<String>,
}

impl TlsWords {
    fn take<'a>(&mut self, word: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<()> {
        match word {
            "ssl" => self.ssl = true,
            "verify" => {
                let value = words.next()?;
                self.verify = Some([Verify::Required, Verify::None].into_iter().find(|one| one.as_str() == value)?);
            }
            "ca-file" if words.next() == Some(SYSTEM_CA) => self.system_ca = true,
            "sni" => self.sni = Some(words.next()?.parse().ok()?),
            "check-sni" => self.check_sni = Some(words.next()?.to_owned()),
            _ => return None,
        }
        Some(())
    }

    /// An error: it is not as we write it.
    fn into_tls(self) -> Result<Option<Tls>, ()> {
        let Self { ssl, verify, system_ca, sni, check_sni } = self;
        let same_name = sni.as_ref().and_then(Sni::host) == check_sni.as_deref();
        let is_ours = ssl == verify.is_some() && system_ca == (verify == Some(Verify::Required)) && same_name;
        let is_plain = ssl || sni.is_none();
        if is_ours && is_plain { Ok(verify.map(|verify| Tls { verify, sni })) } else { Err(()) }
    }
}

/// What the server is used for. Times that we would never write are not accepted: a drain until 2^64 seconds would
/// never end, and a slot that was freed in the distant future would keep its backend until then.
fn occupant(data: &serde_json::Value) -> Option<Occupant> {
    let field = |key: &str| data.get(key).and_then(|value| value.as_str());
    let Some(id) = field("id") else {
        let freed = field("freed")?.parse().ok().filter(|freed| *freed <= LAST_SECOND * 1000)?;
        let until = |text: &str| text.parse().ok().filter(|until| *until <= LAST_SECOND);
        let drain_until = match field("drain_until") {
            Some(text) => Some(until(text)?),
            None => None,
        };
        return Some(Occupant::Free { freed, drain_until });
    };
    let drain = match field("drain") {
        Some(text) => Some(time(text).filter(|drain| *drain <= MAX_DURATION)?),
        None => None,
    };
    let alloc = field("alloc").unwrap_or_default().to_owned();
    let service = field("service").and_then(ServiceKey::from_word);
    Some(Occupant::Instance { id: InstanceId::from_metadata(id), alloc, service, drain })
}

/// Reads the directives of a section with our owner, without its servers; `None`: they contain something that we would
/// never write.
pub fn settings<'a>(directives: impl IntoIterator<Item = &'a Directive>) -> Option<BackendSettings> {
    Reading::default().all(directives)
}

/// The same for a section that several backends share, so that it has no description; the one that is returned is
/// empty.
pub fn shared_settings<'a>(directives: impl IntoIterator<Item = &'a Directive>) -> Option<BackendSettings> {
    Reading { description: Some(String::new()), ..Reading::default() }.all(directives)
}

/// Whether a directive of a backend is one that a controller would write, of any owner. In a backend that is not ours
/// only a `server` can be.
pub fn is_a_controllers(directive: &Directive) -> bool {
    let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", ..] => {
            let owner = metadata(directive).and_then(|data| data.get("owner")?.as_str()?.parse::<Owner>().ok());
            owner.is_some_and(|owner| matches!(server(directive, &owner), ServerLine::Ours(_, Some(_))))
        }
        ["description", mark, ..] => directive.comment.is_none() && mark.starts_with(Owner::PREFIX),
        words => directive.comment.is_none() && Reading::default().directive(words).is_some(),
    }
}

/// What `http-check send` says.
struct Send {
    method: String,
    uri: String,
    host: Option<String>,
    headers: Vec<(String, String)>,
}

impl Send {
    /// From what follows the URI: `hdr NAME VALUE`, any number of times; the Host is the first one, if it is there.
    fn new(method: &str, uri: &str, headers: &[&str]) -> Option<Self> {
        let mut send = Self { method: method.to_owned(), uri: uri.to_owned(), host: None, headers: Vec::new() };
        for (at, header) in headers.chunks(3).enumerate() {
            match header {
                ["hdr", "Host", host] if at == 0 => send.host = Some((*host).to_owned()),
                ["hdr", name, value] => send.headers.push(((*name).to_owned(), (*value).to_owned())),
                _ => return None,
            }
        }
        (!headers.is_empty()).then_some(send)
    }
}

#[derive(Default)]
struct Reading {
    description: Option<String>,
    mode: Option<Mode>,
    balance: Option<Balance>,
    retries: Option<u32>,
    redispatch: Option<u32>,
    check: bool,
    tcp_check: bool,
    timing: Timing,
    option: Option<(String, String, bool)>,
    send: Option<Send>,
    status: Option<String>,
    cookie: Option<CookieName>,
    timeouts: Timeouts,
}

impl Reading {
    fn all<'a>(mut self, directives: impl IntoIterator<Item = &'a Directive>) -> Option<BackendSettings> {
        for directive in directives {
            let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
            self.directive(&words)?;
        }
        self.settings()
    }

    fn directive(&mut self, words: &[&str]) -> Option<()> {
        match words {
            ["description", rest @ ..] if self.description.is_none() => self.description = Some(rest.join(" ")),
            ["mode", mode] => self.mode = Some(mode.parse().ok()?),
            ["balance", rest @ ..] => self.balance = Some(rest.join(" ").parse().ok()?),
            ["retries", n] => self.retries = Some(n.parse().ok()?),
            ["option", "redispatch", n] => self.redispatch = Some(n.parse().ok()?),
            ["option", "tcp-check"] => self.tcp_check = true,
            ["option", "httpchk", method, uri] => self.option = Some(((*method).into(), (*uri).into(), false)),
            ["option", "httpchk", method, uri, "HTTP/1.1"] => {
                self.option = Some(((*method).into(), (*uri).into(), true));
            }
            ["http-check", "send", "meth", method, "uri", uri, headers @ ..] => {
                self.send = Some(Send::new(method, uri, headers)?);
            }
            ["http-check", "expect", "status", status] => self.status = Some((*status).into()),
            ["timeout", "check", value] => self.timing.timeout = Some(time(value)?),
            ["timeout", word, value] => *self.timeouts.get_mut(word)? = Some(time(value)?),
            ["cookie", name, options @ ..] => {
                let has = |option: &&str| options.contains(option);
                self.cookie = (options.len() == COOKIE_OPTIONS.len() && COOKIE_OPTIONS.iter().all(has))
                    .then(|| name.parse().ok())?;
                self.cookie.as_ref()?;
            }
            ["default-server", rest @ ..] => self.default_server(rest)?,
            _ => return None,
        }
        Some(())
    }

    fn default_server(&mut self, words: &[&str]) -> Option<()> {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "check" => self.check = true,
                "fall" => self.timing.fall = Some(words.next()?.parse().ok()?),
                "rise" => self.timing.rise = Some(words.next()?.parse().ok()?),
                "inter" => self.timing.interval = Some(time(words.next()?)?),
                "port" => self.timing.port = Some(words.next()?.parse().ok()?),
                _ => return None,
            }
        }
        Some(())
    }

    fn settings(self) -> Option<BackendSettings> {
        let Self {
            description,
            mode,
            balance,
            retries,
            redispatch,
            check,
            tcp_check,
            timing,
            option,
            send,
            status,
            cookie,
            timeouts,
        } = self;
        if retries != Some(RETRIES) || redispatch != Some(REDISPATCH_INTERVAL) {
            return None;
        }
        if tcp_check && !(check && option.is_none()) {
            return None;
        }
        let check = match (check, option) {
            (true, None) if tcp_check && send.is_none() && status.is_none() => Check::Tcp(timing),
            (true, Some((method, path, with_host))) => {
                let (host, headers) = match send {
                    Some(send) if send.method == method && send.uri == path => (send.host, send.headers),
                    None => (None, Vec::new()),
                    Some(_) => return None,
                };
                if host.is_some() != with_host {
                    return None;
                }
                Check::Http(HttpCheck { method, path, host, headers, status }, timing)
            }
            (false, None) if timing == Timing::default() && send.is_none() && status.is_none() => Check::Disabled,
            _ => return None,
        };
        Some(BackendSettings { description: description?, mode: mode?, balance: balance?, check, cookie, timeouts })
    }
}

/// Reads a time as HAProxy does: milliseconds, unless a unit follows (configuration manual, 2.5).
pub fn time(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    Some(match &text[digits..] {
        "us" => Duration::from_micros(number),
        "" | "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        "d" => Duration::from_secs(number.checked_mul(86_400)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::render;
    use super::*;
    use proptest::prelude::*;

    fn owner() -> Owner {
        "nomad".parse().expect("an owner")
    }

    fn read(lines: &[String]) -> Option<BackendSettings> {
        let directives: Vec<_> = lines.iter().map(|line| Directive::parse(line)).collect();
        settings(&directives)
    }

    #[test]
    fn what_the_api_renders_is_read_as_what_we_sent() {
        // The order and spacing of fixtures/dataplane (3.2, "transaction-lifecycle").
        let api = "description nomad-haproxy:nomad default/api\nmode http\nbalance leastconn\n\
                   option httpchk GET /health HTTP/1.1\nhttp-check send meth GET uri /health hdr Host api.example.com\n\
                   http-check expect status 200\ndefault-server check fall 3 inter 2s rise 2\nretries 3\n\
                   option redispatch 1\ntimeout check 1500";
        let lines: Vec<String> = api.lines().map(str::to_owned).collect();
        let settings = read(&lines).expect("ours");
        let Check::Http(http, timing) = &settings.check else { panic!("{settings:?}") };
        assert_eq!(http.host.as_deref(), Some("api.example.com"));
        assert_eq!((timing.fall, timing.rise, timing.timeout), (Some(3), Some(2), Some(Duration::from_millis(1500))));
        let again: Vec<String> = render::settings(&settings);
        assert_eq!(read(&again), Some(settings));
    }

    #[test]
    fn what_we_would_never_write_is_drift() {
        let base = "description x\nmode http\nbalance roundrobin\nretries 3\noption redispatch 1";
        let lines = |extra: &str| format!("{base}\n{extra}").lines().map(str::to_owned).collect::<Vec<_>>();
        assert!(read(&lines("")[..5]).is_some());
        assert!(read(&lines("http-request deny")).is_none());
        assert!(read(&lines("description y")).is_none());
        assert!(read(&lines("default-server check ssl")).is_none());
        assert!(read(&lines("http-check expect status 200")).is_none());
    }

    #[test]
    fn only_a_server_with_our_mark_is_ours() {
        let line = |text: &str| server(&Directive::parse(text), &owner());
        assert!(matches!(line("server a 10.0.0.1:80"), ServerLine::Foreign(_)));
        assert!(matches!(line("server a 10.0.0.1:80 # {\"owner\":\"other\",\"id\":\"x\"}"), ServerLine::Foreign(_)));
        assert!(matches!(line("server a 10.0.0.1:80 # {\"owner\":"), ServerLine::Foreign(_)));
        let ours =
            line("server a_1 10.0.0.1:80 enabled weight 100 # {\"alloc\":\"q\",\"owner\":\"nomad\",\"id\":\"x\"}");
        let ServerLine::Ours(_, Some(ours)) = ours else { panic!("{ours:?}") };
        assert_eq!((ours.port, ours.options.weight), (80, Some(100)));
        // As releases before 0.2 wrote it: a name that stops resolving would make the whole file unusable.
        let named =
            |more: &str| line(&format!("server a_1 db.internal:80{more} # {{\"owner\":\"nomad\",\"id\":\"x\"}}"));
        assert!(matches!(named(""), ServerLine::Ours(_, None)));
        assert!(matches!(named(" init-addr last,libc,none"), ServerLine::Ours(_, Some(_))));
        // TLS whose certificate a person has made count for less, or whose checks name somebody else.
        let tls = |more: &str| line(&format!("server a_1 10.0.0.1:80 {more} # {{\"owner\":\"nomad\",\"id\":\"x\"}}"));
        for ours in
            ["ssl verify none", "verify required ssl ca-file @system-ca", "check-sni a sni str(a) ssl verify none"]
        {
            assert!(matches!(tls(ours), ServerLine::Ours(_, Some(_))), "{ours}");
        }
        for not in [
            "ssl",
            "verify none",
            "ssl verify required",
            "ssl verify none ca-file @system-ca",
            "sni str(a)",
            "ssl verify none sni str(a)",
            "ssl verify none sni str(a) check-sni b",
            "ssl verify required ca-file x",
            "cookie b",
            "send-proxy-v2-ssl",
        ] {
            assert!(matches!(tls(not), ServerLine::Ours(_, None)), "{not}");
        }
        // Ours, but put into maintenance in the file by a person: to be rewritten.
        let drift = line("server a_1 10.0.0.1:80 disabled # {\"owner\":\"nomad\",\"id\":\"x\"}");
        assert!(matches!(drift, ServerLine::Ours(_, None)));
    }

    #[test]
    fn a_time_beyond_all_clocks_is_drift() {
        let line = |data: &str| {
            let line = format!("server a_1 127.0.0.1:1 # {{\"owner\":\"nomad\",{data}}}");
            let disabled = line.replace(" #", " disabled #");
            [line, disabled].map(|line| server(&Directive::parse(&line), &owner()))
        };
        let is_ours = |lines: &[ServerLine]| lines.iter().any(|line| matches!(line, ServerLine::Ours(_, Some(_))));
        let is_drift = |lines: &[ServerLine]| lines.iter().all(|line| matches!(line, ServerLine::Ours(_, None)));
        assert!(is_ours(&line(r#""freed":"1","drain_until":"1750000000""#)));
        assert!(is_drift(&line(r#""freed":"1","drain_until":"18446744073709551615""#)));
        assert!(is_drift(&line(r#""freed":"1","drain_until":"soon""#)));
        assert!(is_drift(&line(r#""freed":"18446744073709551615""#)));
        assert!(is_ours(&line(r#""id":"x","drain":"24h""#)) && is_drift(&line(r#""id":"x","drain":"25h""#)));
        assert!(is_drift(&line(r#""id":"x","drain":"18446744073709551615s""#)));
    }

    prop_compose! {
        fn timings()(
            ms in prop::option::of(1u64..100_000), timeout in prop::option::of(1u64..100_000),
            rise in prop::option::of(1u32..9), fall in prop::option::of(1u32..9),
            port in prop::option::of(1u16..),
        ) -> Timing {
            Timing {
                interval: ms.map(Duration::from_millis), timeout: timeout.map(Duration::from_millis),
                rise, fall, port,
            }
        }
    }

    fn checks() -> impl Strategy<Value = Check> {
        let http = (
            "(GET|HEAD|POST)",
            "/[a-z0-9/?=&%]{0,20}",
            prop::option::of("[a-z][a-z0-9.-]{0,20}"),
            prop::option::of("[1-5][0-9]{2}(-[1-5][0-9]{2})?"),
            prop::collection::vec(("X-[a-z]{1,5}", "[a-z0-9/=]{1,9}"), 0..3),
        )
            .prop_map(|(method, path, host, status, headers)| HttpCheck {
                method,
                path,
                host,
                headers,
                status,
            });
        prop_oneof![
            Just(Check::Disabled),
            timings().prop_map(Check::Tcp),
            (http, timings()).prop_map(|(http, timing)| Check::Http(http, timing)),
        ]
    }

    fn tls() -> impl Strategy<Value = Option<Box<Tls>>> {
        let sni = prop::option::of("(shop\\.example\\.com|ssl_fc_sni|req\\.hdr\\(host\\),field\\(1,:\\))");
        let tls = (any::<bool>(), sni).prop_map(|(verifies, sni)| {
            let verify = if verifies { Verify::Required } else { Verify::None };
            Box::new(Tls { verify, sni: sni.map(|sni| sni.parse().expect("a server name")) })
        });
        prop::option::of(tls)
    }

    proptest! {
        #[test]
        fn settings_are_read_back_as_they_were_written(
            check in checks(), tcp: bool, cookie: bool, time in prop::option::of((1u64..100_000).prop_map(Duration::from_millis)), balance in "(roundrobin|leastconn|hdr\\([a-z]{1,9}\\)|url_param [a-z]{1,9}|random\\(3\\))",
        ) {
            let settings = BackendSettings {
                description: "nomad-haproxy:nomad default/api".into(),
                mode: if tcp { Mode::Tcp } else { Mode::Http },
                balance: balance.parse().expect("an algorithm"),
                check,
                cookie: cookie.then(|| "SRV.id_1-a".parse().expect("a name")),
                timeouts: Timeouts { connect: time, queue: time, ..Timeouts::default() },
            };
            prop_assert_eq!(read(&render::settings(&settings)), Some(settings));
        }

        #[test]
        fn servers_are_read_back_as_they_were_written(
            id in ".{1,60}", namespace in ".{1,20}", service in ".{1,20}", address in r"(10\.1\.2\.3|2001:db8::5|db\.internal)", port: u16, check: bool, backup: bool, cookie: bool, tls in tls(),
            weight in prop::option::of(0u16..=256), maxconn in prop::option::of(0u32..), free: bool, freed in 0..=LAST_SECOND * 1000, drain in prop::option::of(1u64..100_000),
        ) {
            let address: Address = address.parse().expect("an address");
            let occupant = if free { Occupant::Free { freed, drain_until: drain } } else {
                Occupant::Instance { id: InstanceId::new(&id), alloc: "0a-1".into(), service: Some(ServiceKey { namespace, name: service }), drain: drain.map(Duration::from_millis) }
            };
            let proxy = check.then_some(if free { ProxyProtocol::V1 } else { ProxyProtocol::V2 });
            let name: ServerName = "api_1".parse().expect("a name");
            let written = Server { name: name.clone(), address, port, check, cookie, options: ServerOptions { weight, maxconn, backup, proxy, tls }, gated: free && backup, occupant };
            let line = render::server(&written, &owner());
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(server(&Directive::parse(&line), &owner()), ServerLine::Ours(name, Some(written)));
        }
    }
}
