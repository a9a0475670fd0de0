//! `haproxy.*` tags → intent: a pure parser that never fails. A value that it can't use becomes a complaint, and the
//! default applies.
//!
//! [`TABLE`] has every tag once: the parser, the documentation and the explanations read it.

mod routing;
mod table;
mod value;

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Balance, CookieName, Mode, ProxyProtocol, Sni, Timeouts, Timing, Verify};

pub use routing::Routing;
pub use table::{Level, TABLE, Tag};
pub(crate) use value::MAX_DURATION;
pub(super) use value::{header, method, path, whole};

/// The value of `haproxy.enable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enable {
    /// `true`.
    Yes,
    /// `false`.
    No,
    /// There is no such tag.
    #[default]
    Unsaid,
    /// A value that is neither: nothing is added, and nothing is removed.
    Unclear,
}

/// The value of `haproxy.backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendTag {
    /// Ours: made, changed and deleted.
    #[default]
    Dynamic,
    /// An existing one: we add only servers.
    Custom,
    /// Not managed.
    Static,
}

/// The kind of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckType {
    /// `http`.
    Http,
    /// `tcp`.
    Tcp,
}

/// The check tags, each as far as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckTags {
    /// `check.type`.
    pub kind: Option<CheckType>,
    /// `check.path`.
    pub path: Option<String>,
    /// `check.method`.
    pub method: Option<String>,
    /// `check.host`.
    pub host: Option<String>,
    /// `check.status`.
    pub status: Option<String>,
    /// `check.interval`, `.timeout`, `.rise`, `.fall`, `.port`.
    pub timing: Timing,
    /// `check.init`: whether a slot that is filled waits for its first passing check.
    pub gated: Option<bool>,
    /// `check.disabled`.
    pub disabled: bool,
}

/// The tags of one server, each as far as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerTags {
    /// `weight`.
    pub weight: Option<u16>,
    /// `maxconn`.
    pub maxconn: Option<u32>,
    /// `backup`.
    pub backup: bool,
    /// `proxy-protocol`.
    pub proxy: Option<ProxyProtocol>,
    /// `ssl`.
    pub ssl: bool,
    /// `ssl.verify`.
    pub verify: Option<Verify>,
    /// `sni`.
    pub sni: Option<Sni>,
}

/// The meaning of one registration's tags.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Intent {
    /// `enable`.
    pub enable: Enable,
    /// `backend`.
    pub backend: BackendTag,
    /// `backend.name`, not validated yet.
    pub backend_name: Option<String>,
    /// `mode`.
    pub mode: Option<Mode>,
    /// `balance`.
    pub balance: Option<Balance>,
    /// `check.*`.
    pub check: CheckTags,
    /// `cookie`.
    pub cookie: Option<CookieName>,
    /// `timeout.*`.
    pub timeouts: Timeouts,
    /// Those of a server, but for `drain`.
    pub server: ServerTags,
    /// `drain`.
    pub drain: Option<Duration>,
    /// `slots`.
    pub slots: Option<u32>,
    /// `target`: the names of HAProxys; empty: all of them.
    pub targets: BTreeSet<String>,
    /// `frontend`, `domain`, `domain.type`, `path`.
    pub routing: Routing,
    /// Tags that configure the backend's section, by name; they have no effect if the section is not ours.
    pub section: Vec<&'static str>,
}

/// A tag that was ignored, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint(pub String);

/// The longest tag, in bytes, that is read: longer than any valid value needs.
const MAX_TAG_LENGTH: usize = 1500;
/// Replaces the value of a longer one. No rule accepts it.
const TOO_LONG: &str = "…";
/// How many complaints about one registration are listed.
const MAX_COMPLAINTS: usize = 10;
/// The longest name, in bytes, for which the nearest known one is searched.
const MAX_GUESS_LENGTH: usize = 40;

/// Reads the tags that start with the prefix and ignores the others. The order of tags changes from answer to answer,
/// so of two tags the value decides which one wins, not the position.
pub fn parse<'a>(prefix: &str, tags: impl IntoIterator<Item = &'a str>) -> (Intent, Vec<Complaint>) {
    let mut intent = Intent::default();
    let mut complaints = Vec::new();
    let ours = tags.into_iter().filter_map(|tag| tag.strip_prefix(prefix));
    let mut ours: Vec<(&str, bool)> = ours.map(|tag| (beginning(tag), tag.len() > MAX_TAG_LENGTH)).collect();
    ours.sort_unstable();
    ours.dedup();
    let mut seen: Option<&str> = None;
    for (tag, is_too_long) in ours {
        let (name, value) = tag.split_once('=').map_or((tag, None), |(name, value)| (name, Some(value.trim())));
        let value = if is_too_long { Some(TOO_LONG) } else { value };
        let Some(known) = TABLE.iter().find(|known| known.name == name) else {
            complaints.push(unknown(prefix, name));
            continue;
        };
        if let Err(why) = (known.take)(&mut intent, value) {
            let tag: String = shorten(tag);
            complaints.push(Complaint(format!("tag {:?} is ignored: {why}", format!("{prefix}{tag}"))));
            continue;
        }
        if seen.replace(name) == Some(name) && !known.is_repeatable() {
            complaints.push(Complaint(format!(
                "tag {prefix}{name} is there twice; {:?} counts",
                shorten(value.unwrap_or(""))
            )));
        }
        if known.level.is_of_section() {
            intent.section.push(known.name);
        }
    }
    for why in intent.routing.combine() {
        complaints.push(Complaint(format!("a value of {prefix}domain is ignored: {why}")));
    }
    if let Some(more) = complaints.len().checked_sub(MAX_COMPLAINTS).filter(|more| *more > 0) {
        complaints.truncate(MAX_COMPLAINTS);
        complaints.push(Complaint(format!("{more} more tags are ignored")));
    }
    (intent, complaints)
}

/// A tag that has the prefix in another case.
pub fn in_another_case<'a>(prefix: &str, tags: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let is_it = |tag: &&str| {
        let start = tag.get(..prefix.len());
        start.is_some_and(|start| start != prefix && start.eq_ignore_ascii_case(prefix))
    };
    tags.into_iter().filter(is_it).map(beginning).min()
}

fn beginning(tag: &str) -> &str {
    let end = (0..=tag.len().min(MAX_TAG_LENGTH)).rev().find(|at| tag.is_char_boundary(*at));
    &tag[..end.unwrap_or(0)]
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

fn unknown(prefix: &str, name: &str) -> Complaint {
    // The distance costs the product of both lengths.
    let guesses = TABLE.iter().map(|tag| tag.name).filter(|_| name.len() <= MAX_GUESS_LENGTH);
    let nearest = guesses.map(|known| (strsim::damerau_levenshtein(name, known), known)).min();
    let hint = match nearest {
        Some((distance, known)) if distance <= 3.max(known.len() / 3) => format!("; did you mean {prefix}{known}?"),
        _ => String::new(),
    };
    Complaint(format!("tag {:?} is unknown{hint}", format!("{prefix}{}", shorten(name))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(tags: &[&str]) -> (Intent, Vec<String>) {
        let (intent, complaints) = parse("haproxy.", tags.iter().copied());
        (intent, complaints.into_iter().map(|complaint| complaint.0).collect())
    }

    #[test]
    fn the_tags_of_existing_jobs_are_read() {
        let (intent, complaints) = read(&[
            "haproxy.enable=true",
            "haproxy.backend=custom",
            "haproxy.check.path=/health",
            "haproxy.check.host=api.internal",
            "haproxy.check.method=get",
            "unrelated",
        ]);
        assert_eq!(complaints, Vec::<String>::new());
        assert_eq!((intent.enable, intent.backend), (Enable::Yes, BackendTag::Custom));
        assert_eq!(intent.check.method.as_deref(), Some("GET"));
        assert_eq!(intent.section, ["check.host", "check.method", "check.path"]);
    }

    #[test]
    fn a_flag_needs_no_value() {
        assert!(read(&["haproxy.check.disabled"]).0.check.disabled);
        assert!(!read(&["haproxy.check.disabled=false"]).0.check.disabled);
        assert!(read(&["haproxy.backup"]).0.server.backup);
    }

    #[test]
    fn an_unknown_tag_names_the_nearest_one() {
        let (_, complaints) = read(&["haproxy.enabel=true"]);
        assert!(complaints[0].contains("did you mean haproxy.enable?"), "{complaints:?}");
        let (_, complaints) = read(&["haproxy.zzzzzzzzzzzz"]);
        assert!(!complaints[0].contains("did you mean"), "{complaints:?}");
    }

    #[test]
    fn a_bad_value_leaves_the_default_and_says_what_is_allowed() {
        let (intent, complaints) = read(&["haproxy.weight=300", "haproxy.mode=udp", "haproxy.enable=tru"]);
        assert_eq!((intent.server.weight, intent.mode, intent.enable), (None, None, Enable::Unclear));
        assert_eq!(complaints.len(), 3);
        assert!(complaints.iter().any(|c| c.contains("0 to 256")), "{complaints:?}");
    }

    #[test]
    fn a_tag_of_any_length_is_read_by_its_beginning_and_takes_no_good_value() {
        let long = "a".repeat(1_000_000);
        for name in ["check.path=/", "check.host=", "weight=0000", "enable=true ", "backend.name=", "drain=1s", ""] {
            let spaces = " ".repeat(1_000_000);
            let tags = [format!("haproxy.{name}{long}"), format!("haproxy.{name}{spaces}1")];
            let (intent, complaints) = read(&[&tags[0], &tags[1]]);
            let text = complaints.concat();
            assert!(!text.is_empty() || name.starts_with("backend.name"), "{name}");
            assert!(text.len() < 1000, "{}", text.len());
            assert!(intent.check == CheckTags::default() && intent.server == ServerTags::default(), "{intent:?}");
            assert_eq!(intent.enable, if name.starts_with("enable") { Enable::Unclear } else { Enable::Unsaid });
        }
    }

    #[test]
    fn many_bad_tags_are_counted() {
        let tags: Vec<String> = (0..5000).map(|n| format!("haproxy.x{n}")).collect();
        let (_, complaints) = read(&tags.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((complaints.len(), complaints[10].as_str()), (11, "4990 more tags are ignored"));
    }

    #[test]
    fn a_prefix_in_another_case_is_seen() {
        let seen = |tags: &[&'static str]| in_another_case("haproxy.", tags.iter().copied());
        assert_eq!(seen(&["x", "haproxy.enable", "HAProxy.enable=true"]), Some("HAProxy.enable=true"));
        assert_eq!(seen(&["haproxy.enable", "HAProxyé", "HAProxy"]), None);
    }

    #[test]
    fn the_order_of_tags_does_not_matter() {
        let one = read(&["haproxy.weight=5", "haproxy.weight=7", "haproxy.mode=tcp"]);
        assert_eq!(one, read(&["haproxy.mode=tcp", "haproxy.weight=7", "haproxy.weight=5"]));
        assert_eq!(one.1.len(), 1, "{:?}", one.1);
    }

    #[test]
    fn no_character_that_haproxy_interprets_gets_through() {
        for bad in [
            "check.path=/a b",
            "check.path=/a\nserver x",
            "check.path=/a\"",
            "check.path=/#",
            "check.path=/$HOME",
            "check.host=a b",
            "check.host=a\0",
            "check.status=2xx",
            "check.status=200\nx",
            "balance=uri\nx",
            "check.interval=-1s",
            "check.interval=0s",
            "check.interval=900h",
            "check.method=GET /",
        ] {
            let (intent, complaints) = read(&[&format!("haproxy.{bad}")]);
            assert_eq!((intent, complaints.len()), (Intent::default(), 1), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_tag_ever_panics(tags in prop::collection::vec("(haproxy\\.)?(check\\.|backend\\.)?[a-z]{0,9}=?.{0,12}", 0..8)) {
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            let _ = read(&tags);
        }

        #[test]
        fn only_plain_text_gets_through(value in "(?s).{0,30}") {
            for name in ["check.path", "check.host", "check.status", "balance"] {
                let (intent, _) = read(&[&format!("haproxy.{name}={value}")]);
                let texts = [intent.check.path, intent.check.host, intent.check.status, intent.balance.map(|b| b.to_string())];
                for text in texts.into_iter().flatten() {
                    prop_assert!(!text.contains(['\n', '"', '\'', '#', '\\', '$', '\0']), "{:?}", text);
                }
            }
        }
    }
}
