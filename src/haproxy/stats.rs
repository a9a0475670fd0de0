//! What HAProxy counts for each frontend, backend and server since its worker started: `show stat` (management guide,
//! 9.1 and 9.3), from the socket or through the Data Plane API.
//!
//! The socket answers in CSV, with a header that names the columns and quotes around a value with a comma. The API has
//! HAProxy's CSV as JSON, in the same names; it splits lines at each comma (by the source of client-native 6.2), so it
//! leaves out a server whose last check was answered with one. Fields without a value are absent in both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The columns with words, as the Data Plane API types them; all others are numbers.
const WORDS: [&str; 13] = [
    "addr",
    "agent_desc",
    "agent_status",
    "algo",
    "check_desc",
    "check_status",
    "cookie",
    "hanafail",
    "last_agt",
    "last_chk",
    "mode",
    "status",
    "tracked",
];

/// What a sample takes ([`Fields::Checks`]).
const CHECKS: [&str; 8] = ["status", "scur", "ereq", "econ", "eresp", "check_status", "check_desc", "last_chk"];

/// Which fields of each row are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fields {
    /// All, some 60 for each row: 10,000 servers are 50 MB.
    All,
    /// Those that say how it is: status, sessions, errors and the last check.
    Checks,
}

/// What a row is about (`type` in the CSV).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A frontend, or the one of a `listen` section (0).
    Frontend,
    /// A backend, or the one of a `listen` section (1).
    Backend,
    /// A server (2).
    Server,
}

/// One frontend, backend or server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The backend of a server.
    #[serde(rename = "backend_name", skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// All fields with a value, in HAProxy's names.
    #[serde(rename = "stats")]
    pub fields: BTreeMap<Arc<str>, Value>,
}

/// The answer, in HAProxy's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats(pub Vec<Row>);

/// Why an answer is none.
#[derive(Debug, Error)]
pub enum StatsError {
    /// The CSV.
    #[error("HAProxy's statistics are no CSV")]
    Csv(#[from] csv::Error),
    /// The JSON of the API.
    #[error("the Data Plane API's statistics are not in the form of its version 3")]
    Json(#[from] serde_json::Error),
    /// It has no header, so it is a message.
    #[error("HAProxy answers `show stat` with {0:?}")]
    NotStats(String),
    /// The API has asked HAProxy, and got none.
    #[error("the Data Plane API got no statistics from HAProxy: {0}")]
    Unanswered(String),
}

/// The answer of the API.
#[derive(Deserialize)]
struct Native<'a, const ALL: bool> {
    error: Option<String>,
    #[serde(borrow)]
    stats: Option<Vec<NativeRow<'a, ALL>>>,
}

#[derive(Deserialize)]
struct NativeRow<'a, const ALL: bool> {
    /// Absent for the listeners of `option socket-stats`.
    #[serde(rename = "type")]
    kind: Option<Kind>,
    name: Option<String>,
    backend_name: Option<String>,
    #[serde(borrow, default)]
    stats: Kept<'a, ALL>,
}

/// The fields of a row, all or [`CHECKS`]: what is not kept is not built either.
#[derive(Default)]
struct Kept<'a, const ALL: bool>(Vec<(&'a str, Value)>);

impl<'de: 'a, 'a, const ALL: bool> Deserialize<'de> for Kept<'a, ALL> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<const ALL: bool>;
        impl<'de, const ALL: bool> Visitor<'de> for Reader<ALL> {
            type Value = Vec<(&'de str, Value)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the fields of a row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while let Some(name) = map.next_key::<&str>()? {
                    if ALL || CHECKS.contains(&name) {
                        kept.push((name, map.next_value()?));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(kept)
            }
        }
        deserializer.deserialize_map(Reader::<ALL>).map(Self)
    }
}

impl Stats {
    /// Reads the answer of the socket.
    pub fn from_csv(answer: &str, fields: Fields) -> Result<Self, StatsError> {
        let Some(text) = answer.trim_start().strip_prefix("# ") else {
            return Err(StatsError::NotStats(answer.lines().next().unwrap_or_default().to_owned()));
        };
        // Another column may be missing in a row; `flexible` takes what is there.
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
        let columns: Vec<Arc<str>> = reader.headers()?.iter().map(Arc::from).collect();
        let rows = reader.records().map(|record| Ok(row(&columns, &record?, fields)));
        Ok(Self(rows.filter_map(Result::transpose).collect::<Result<_, csv::Error>>()?))
    }

    /// Reads the answer of the Data Plane API.
    pub fn from_native(body: &[u8], fields: Fields) -> Result<Self, StatsError> {
        match fields {
            Fields::All => Self::native(serde_json::from_slice::<Native<'_, true>>(body)?),
            Fields::Checks => Self::native(serde_json::from_slice::<Native<'_, false>>(body)?),
        }
    }

    fn native<const ALL: bool>(answer: Native<'_, ALL>) -> Result<Self, StatsError> {
        let Native { error, stats } = answer;
        if let Some(error) = error.filter(|error| !error.is_empty()) {
            return Err(StatsError::Unanswered(error));
        }
        // Ten thousand rows share their names.
        let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut shared = |name: &str| match names.get(name) {
            Some(known) => known.clone(),
            None => {
                let new: Arc<str> = name.into();
                names.insert(new.clone());
                new
            }
        };
        let rows = stats.unwrap_or_default().into_iter().filter_map(|row| {
            let NativeRow { kind, name, backend_name: backend, stats } = row;
            let fields = stats.0.into_iter().map(|(name, value)| (shared(name), value)).collect();
            Some(Row { kind: kind?, name: name?, backend, fields })
        });
        Ok(Self(rows.collect()))
    }

    /// The rows of one kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Row> {
        self.0.iter().filter(move |row| row.kind == kind)
    }

    /// Requests and connections that failed in this worker: requests that clients broke off or sent malformed
    /// (`ereq`), connections to servers that failed (`econ`), answers that failed (`eresp`).
    pub fn errors(&self) -> u64 {
        // A backend's figures include those of its servers.
        self.0.iter().filter(|row| row.kind != Kind::Server).map(Row::errors).sum()
    }
}

/// A row of the CSV. `None`: a listener (`option socket-stats`).
fn row(columns: &[Arc<str>], record: &csv::StringRecord, wanted: Fields) -> Option<Row> {
    let mut fields: BTreeMap<Arc<str>, Value> = BTreeMap::new();
    let (mut proxy, mut name, mut kind) = ("", "", "");
    for (column, value) in columns.iter().zip(record) {
        match &**column {
            "pxname" => proxy = value,
            "svname" => name = value,
            "type" => kind = value,
            // The separator before the columns of HAProxy's modules, and the end of the line.
            "-" | "" => {}
            _ if value.is_empty() => {}
            other if wanted == Fields::Checks && !CHECKS.contains(&other) => {}
            words if WORDS.contains(&words) => drop(fields.insert(column.clone(), value.into())),
            _ => drop(fields.insert(column.clone(), value.parse::<i64>().map_or_else(|_| value.into(), Value::from))),
        }
    }
    let (kind, name, backend) = match kind {
        "0" => (Kind::Frontend, proxy, None),
        "1" => (Kind::Backend, proxy, None),
        "2" => (Kind::Server, name, Some(proxy.to_owned())),
        _ => return None,
    };
    Some(Row { kind, name: name.to_owned(), backend, fields })
}

impl Row {
    /// A number that is not negative; `None`: it does not apply to this row, or HAProxy did not say.
    fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.as_u64()
    }

    fn words(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    /// `OPEN`, `UP`, `DOWN`, `MAINT`, `DRAIN`, `NOLB`, `no check`, with more behind: `UP 1/3`, `MAINT (via api/one)`.
    pub fn status(&self) -> Option<&str> {
        self.words("status")
    }

    /// Sessions that are open (`scur`).
    pub fn sessions(&self) -> Option<u64> {
        self.number("scur")
    }

    /// Sessions so far (`stot`).
    pub fn sessions_total(&self) -> Option<u64> {
        self.number("stot")
    }

    /// Sessions in the last second (`rate`).
    pub fn session_rate(&self) -> Option<u64> {
        self.number("rate")
    }

    /// HTTP requests so far (`req_tot`).
    pub fn requests_total(&self) -> Option<u64> {
        self.number("req_tot")
    }

    /// HTTP requests in the last second (`req_rate`), of a frontend.
    pub fn request_rate(&self) -> Option<u64> {
        self.number("req_rate")
    }

    /// Malformed or aborted requests (`ereq`), of a frontend.
    pub fn request_errors(&self) -> Option<u64> {
        self.number("ereq")
    }

    /// Connections to servers that failed (`econ`).
    pub fn connection_errors(&self) -> Option<u64> {
        self.number("econ")
    }

    /// Answers of servers that failed (`eresp`).
    pub fn response_errors(&self) -> Option<u64> {
        self.number("eresp")
    }

    /// All errors that apply to it.
    pub fn errors(&self) -> u64 {
        [self.request_errors(), self.connection_errors(), self.response_errors()].into_iter().flatten().sum()
    }

    /// The result of the last check, as a word: `L4OK`, `L7STS`, `INI`, with `* ` before it while a check runs.
    pub fn check_status(&self) -> Option<&str> {
        self.words("check_status")
    }

    /// The same as a sentence: `Layer4 connection problem`.
    pub fn check_description(&self) -> Option<&str> {
        self.words("check_desc")
    }

    /// What the last check was answered with: `Connection refused`, `Service Unavailable`.
    pub fn last_check(&self) -> Option<&str> {
        self.words("last_chk")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As HAProxy 3.2.26 answered, with fewer columns.
    const CSV: &str = "# pxname,svname,scur,stot,ereq,econ,eresp,status,type,rate,check_status,req_rate,req_tot,lastsess,last_chk,check_desc,addr,-,ssl_sess,\n\
        web,FRONTEND,1,7,2,,,OPEN,0,3,,4,5,,,,,-,0,\n\
        api,api_1,0,6,,1,2,DOWN 1/2,2,0,L4CON,,6,-1,\"Connection refused at step 1, of tcp-check\",Layer4 connection problem,127.0.0.1:80,-,0,\n\
        api,BACKEND,0,6,,1,2,UP,1,0,,,6,-1,,,,-,0,\n\
        web,sock-1,0,0,0,,,OPEN,3,,,,,,,,,-,0,\n\n";

    #[test]
    fn the_csv_is_read_by_its_header() {
        let stats = Stats::from_csv(CSV, Fields::All).expect("it is good");
        let [web, server, api] = &stats.0[..] else { panic!("{stats:#?}") };
        assert_eq!((web.kind, web.name.as_str(), web.status()), (Kind::Frontend, "web", Some("OPEN")));
        assert_eq!((web.sessions(), web.sessions_total(), web.session_rate()), (Some(1), Some(7), Some(3)));
        assert_eq!((web.request_rate(), web.requests_total(), web.request_errors()), (Some(4), Some(5), Some(2)));
        assert_eq!((server.backend.as_deref(), server.name.as_str()), (Some("api"), "api_1"));
        assert_eq!(server.check_status(), Some("L4CON"));
        assert_eq!(server.check_description(), Some("Layer4 connection problem"));
        assert_eq!(server.last_check(), Some("Connection refused at step 1, of tcp-check"));
        assert_eq!(server.fields["lastsess"], -1);
        assert!(!server.fields.contains_key("req_rate"), "it has no value");
        assert_eq!((api.kind, api.backend.as_deref(), api.errors()), (Kind::Backend, None, 3));
        assert_eq!(stats.errors(), 5, "those of the server are its backend's");
    }

    #[test]
    fn the_json_of_the_api_says_the_same() {
        let csv = Stats::from_csv(CSV, Fields::All).expect("it is good");
        let answer = serde_json::json!({"runtimeAPI": "/run/master.sock@1", "stats": csv.0});
        let mut text = answer.to_string();
        assert_eq!(Stats::from_native(text.as_bytes(), Fields::All).expect("it is good"), csv);
        // A listener has neither name nor type.
        text = text.replace("\"stats\":[", "\"stats\":[{\"stats\":{\"scur\":0}},");
        assert_eq!(Stats::from_native(text.as_bytes(), Fields::All).expect("it is good"), csv);
    }

    #[test]
    fn only_what_is_wanted_is_kept() {
        let csv = Stats::from_csv(CSV, Fields::Checks).expect("it is good");
        let answer = serde_json::json!({"stats": Stats::from_csv(CSV, Fields::All).expect("it is good").0}).to_string();
        assert_eq!(Stats::from_native(answer.as_bytes(), Fields::Checks).expect("it is good"), csv);
        let server = &csv.0[1];
        assert_eq!(
            (server.status(), server.errors(), server.fields.contains_key("addr")),
            (Some("DOWN 1/2"), 3, false)
        );
        assert!(server.fields.keys().all(|name| CHECKS.contains(&&**name)), "{server:?}");
    }

    #[test]
    fn a_message_is_no_statistics() {
        let error = |result: Result<Stats, StatsError>| result.expect_err("it has none").to_string();
        assert!(error(Stats::from_csv("Permission denied\n", Fields::All)).contains("\"Permission denied\""));
        assert!(error(Stats::from_native(b"{\"error\": \"dial unix\"}", Fields::All)).contains("dial unix"));
        assert!(error(Stats::from_native(b"[]", Fields::All)).contains("version 3"));
    }
}
