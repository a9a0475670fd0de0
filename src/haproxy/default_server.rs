//! What `default-server` gives to the servers of a backend, for a server that is added at run time: nothing is inherited
//! there (management guide, 9.3, `add server`), so every option is stated.

use std::collections::BTreeMap;

/// Options without a value that `default-server` and `add server` have in common.
const FLAGS: &[&str] = &["backup", "check", "check-send-proxy", "check-ssl", "send-proxy", "send-proxy-v2", "ssl"];
/// The same with one value.
const VALUES: &[&str] = &[
    "alpn",
    "check-alpn",
    "check-sni",
    "downinter",
    "error-limit",
    "fall",
    "fastinter",
    "inter",
    "maxconn",
    "maxqueue",
    "minconn",
    "observe",
    "on-error",
    "on-marked-down",
    "on-marked-up",
    "pool-low-conn",
    "pool-max-conn",
    "pool-purge-delay",
    "port",
    "proto",
    "rise",
    "slowstart",
    "sni",
    "verify",
    "weight",
];
/// Options with one value that only matter to a server with a host name, which is not added at run time.
const OF_NAMES: &[&str] = &["init-addr", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers"];

/// The options of a server, each with its value if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerDefaults(BTreeMap<String, Option<String>>);

impl ServerDefaults {
    /// Adds what one `default-server` line gives, without its keyword. `None`: it has an option that `add server` does
    /// not take, or that is not known here, so what a server inherits is not known.
    pub fn with(mut self, words: &[String]) -> Option<Self> {
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            if OF_NAMES.contains(&word) {
                words.next()?;
            } else if FLAGS.contains(&word) {
                self.set(word, None);
            } else if VALUES.contains(&word) {
                let value = words.next().filter(|value| is_plain(value))?;
                self.set(word, Some(value));
            } else {
                return None;
            }
        }
        // HAProxy would need files with certificates, which it loads only when it starts.
        let speaks_tls = self.has("ssl") || self.has("check-ssl");
        let verifies = speaks_tls && self.0.get("verify") != Some(&Some("none".to_owned()));
        (!verifies).then_some(self)
    }

    /// Sets an option, in place of what was inherited.
    pub fn set(&mut self, option: &str, value: Option<&str>) {
        self.0.insert(option.to_owned(), value.map(str::to_owned));
    }

    /// Whether an option is there.
    pub fn has(&self, option: &str) -> bool {
        self.0.contains_key(option)
    }

    /// The options as `add server` takes them.
    pub fn to_words(&self) -> String {
        let word = |(option, value): (&String, &Option<String>)| match value {
            Some(value) => format!("{option} {value}"),
            None => option.clone(),
        };
        self.0.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}

/// Whether a value is one word on a socket, too, and means the same there: no variable, no quote, no escape.
fn is_plain(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.,:/%()[]*+".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Option<String> {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let all = lines.iter().try_fold(ServerDefaults::default(), |all, line| all.with(&words(line)));
        all.map(|all| all.to_words())
    }

    #[test]
    fn a_later_value_replaces_an_earlier_one() {
        assert_eq!(
            read(&["inter 2s rise 2 check", "inter 300ms init-addr none"]).as_deref(),
            Some("check inter 300ms rise 2")
        );
    }

    #[test]
    fn what_is_not_known_makes_all_of_it_unknown() {
        for line in ["agent-check", "no-check", "inter ${INTER}", "inter", "ssl", "ssl verify required", "cookie a b"] {
            assert_eq!(read(&["check", line]), None, "{line}");
        }
        assert!(read(&["ssl verify none sni str(shop.example.com)"]).is_some());
    }
}
