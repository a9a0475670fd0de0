//! Values of tags: text → a type with its range checked. An error says what is allowed.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use crate::desired::Invalid;

/// The largest interval or timeout of a check: HAProxy counts milliseconds in 31 bits.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// `a,b`: names, of which there is one at least.
pub(super) fn names(value: &str) -> Result<BTreeSet<String>, String> {
    let names: BTreeSet<String> = value.split(',').map(|name| name.trim().to_owned()).collect();
    if names.contains("") { Err("names of HAProxys, with commas between them".to_owned()) } else { Ok(names) }
}

/// A tag without a value is on: `haproxy.check.disabled` and `haproxy.check.disabled=true` are the same.
pub(super) fn flag(value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(_) => Err("true or false".to_owned()),
    }
}

pub(super) fn needed(value: Option<&str>) -> Result<&str, String> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| "it needs a value (`=…`)".to_owned())
}

pub(super) fn parsed<T: FromStr<Err = Invalid>>(value: Option<&str>) -> Result<T, String> {
    needed(value)?.parse().map_err(|error: Invalid| error.to_string())
}

pub(super) fn number<T: FromStr + PartialOrd + std::fmt::Display + Copy>(
    value: Option<&str>,
    least: T,
    most: T,
) -> Result<T, String> {
    match needed(value)?.parse::<T>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!("a whole number from {least} to {most}")),
    }
}

pub(super) fn duration(value: Option<&str>) -> Result<Duration, String> {
    let time = humantime::parse_duration(needed(value)?).ok().and_then(whole);
    match time {
        Some(time) => Ok(time),
        None => Err("a time from 1ms to 24h, such as 500ms, 2s or 1m".to_owned()),
    }
}

/// A time that HAProxy can take: in whole milliseconds, and within its range.
pub(in crate::desired) fn whole(time: Duration) -> Option<Duration> {
    let is_whole = time <= MAX_DURATION && time.as_millis() > 0 && time.subsec_nanos().is_multiple_of(1_000_000);
    is_whole.then_some(time)
}

/// A header of a request, whose value HAProxy takes as a format: so no `%` either.
pub(in crate::desired) fn header(name: &str, value: &str) -> Result<(), String> {
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let is_value = !value.is_empty() && plain(value, b":[]/?=&@!*+,;()");
    if is_name && is_value {
        Ok(())
    } else {
        Err("it needs a name, and a value without space, quote, %, # or $".to_owned())
    }
}

/// No character that HAProxy's quoting interprets: no space, quote, backslash, `#` or `$`.
pub(super) fn plain(value: &str, extra: &[u8]) -> bool {
    value.len() <= 1024
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || extra.contains(&b))
}

pub(in crate::desired) fn path(value: &str) -> Result<String, String> {
    if value.starts_with('/') && plain(value, b"/?=&%:@!*+,;()") {
        return Ok(value.to_owned());
    }
    Err("a path that starts with / and has no space, quote, # or $".to_owned())
}

pub(in crate::desired) fn method(value: &str) -> Result<String, String> {
    let value = value.to_ascii_uppercase();
    match value.as_str() {
        "GET" | "HEAD" | "OPTIONS" | "POST" | "PUT" => Ok(value),
        _ => Err("GET, HEAD, OPTIONS, POST or PUT".to_owned()),
    }
}

pub(super) fn host(value: &str) -> Result<String, String> {
    if plain(value, b":[]") { Ok(value.to_owned()) } else { Err("a host name, with a port if need be".to_owned()) }
}

pub(super) fn status(value: &str) -> Result<String, String> {
    let code = |text: &str| text.len() == 3 && text.parse().is_ok_and(|code: u16| (100..600).contains(&code));
    let range = |text: &str| text.split_once('-').map_or_else(|| code(text), |(a, b)| code(a) && code(b) && a <= b);
    if value.split(',').all(range) {
        return Ok(value.to_owned());
    }
    Err("a status (200), a range (200-299) or a list of them with commas".to_owned())
}
