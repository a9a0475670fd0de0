//! Marks: which controller a backend or a server belongs to, and how the configuration records it.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::haproxy::connector;

use super::name::valid;
use super::{BackendName, Invalid, ServiceKey};

/// The `owner` setting of the controller that wrote a backend or a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    name: String,
    /// The owner whose marks are read as ours, and replaced by ours (`--adopt`).
    adopted: Option<String>,
}

impl FromStr for Owner {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let ok = !value.is_empty()
            && value.len() <= 64
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        valid("owner", "letters, digits and - _ . only, 64 at the most", value, ok)
            .map(|name| Self { name, adopted: None })
    }
}

impl Owner {
    /// The start of the description of every backend that a controller makes, of any owner.
    pub const PREFIX: &str = "nomad-haproxy:";
    /// How many services are separated by a space; the others are separated by a comma, as HAProxy refuses a line of
    /// more than 64 words (`MAX_LINE_ARGS`).
    const WORDS: usize = 32;

    /// The owner's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, taking over what carries the mark of another owner.
    #[must_use]
    pub fn adopting(self, other: &Self) -> Self {
        Self { adopted: (other.name != self.name).then(|| other.name.clone()), ..self }
    }

    /// Whether it takes over another owner's marks.
    pub fn is_adopting(&self) -> bool {
        self.adopted.is_some()
    }

    /// Whether it takes over what haproxy-nomad-connector made.
    pub fn adopts_connector(&self) -> bool {
        self.adopts(connector::NAME)
    }

    /// Whether the mark with this name is ours, or is taken over.
    pub fn has(&self, name: &str) -> bool {
        name == self.name || self.adopts(name)
    }

    /// Whether the mark with this name is taken over.
    pub fn adopts(&self, name: &str) -> bool {
        self.adopted.as_deref() == Some(name)
    }

    /// The description of a backend that we make: the mark, the backend's name (so that a copy made by hand can be
    /// recognised), then its services.
    pub fn describe<'a>(&self, backend: &BackendName, services: impl IntoIterator<Item = &'a ServiceKey>) -> String {
        let mut text = format!("{}{} {backend}", Self::PREFIX, self.name);
        for (number, service) in services.into_iter().enumerate() {
            text.push(if number < Self::WORDS { ' ' } else { ',' });
            text.push_str(&service.to_word());
        }
        text
    }

    /// Parses a description with this mark, or the one that is taken over; `None`: it has another one, or none.
    pub fn described(&self, description: &str) -> Option<Described> {
        Self::read(description).filter(|(name, _)| self.has(name)).map(|(_, described)| described)
    }

    /// Parses a description with the mark of any owner, whose name is returned with it.
    pub fn read(description: &str) -> Option<(String, Described)> {
        let mut words = description.split([' ', ',']).filter(|word| !word.is_empty()).peekable();
        let name = words.next()?.strip_prefix(Self::PREFIX)?.to_owned();
        let backend = words.next_if(|word| !word.contains('/')).map(str::to_owned);
        let mut seen = BTreeSet::new();
        let services = words.filter_map(ServiceKey::from_word).filter(|service| seen.insert(service.clone())).collect();
        Some((name, Described { backend, services }))
    }
}

/// The content of the description of a backend of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The backend that it was written for; `None`: it was written by 0.1, which did not record it.
    pub backend: Option<String>,
    /// The services that it was made for, in their order.
    pub services: Vec<ServiceKey>,
}

/// Encodes untrusted text as one word, with special characters as `%XX`.
pub fn encode(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, PLAIN).to_string()
}

pub(super) fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner() -> Owner {
        "nomad".parse().expect("an owner")
    }

    fn shop() -> BackendName {
        "shop".parse().expect("a name")
    }

    #[test]
    fn another_owners_mark_is_not_ours() {
        let key = ServiceKey { namespace: "default".into(), name: "api".into() };
        let text = owner().describe(&shop(), [&key]);
        assert_eq!(text, "nomad-haproxy:nomad shop default/api");
        assert!("nomad2".parse::<Owner>().expect("an owner").described(&text).is_none());
        assert!(owner().described("my own words").is_none());
        assert!(owner().described("").is_none());
    }

    #[test]
    fn a_mark_that_is_taken_over_is_read_as_ours_and_written_as_ours() {
        let (blue, green): (Owner, Owner) = ("blue".parse().expect("an owner"), "green".parse().expect("an owner"));
        let text = blue.describe(&shop(), []);
        assert!(green.described(&text).is_none());
        let adopting = green.clone().adopting(&blue);
        assert_eq!((adopting.described(&text).is_some(), adopting.name()), (true, "green"));
        assert_eq!(adopting.describe(&shop(), []), green.describe(&shop(), []));
        assert_eq!(green.clone().adopting(&green), green);
    }

    #[test]
    fn a_description_of_0_1_does_not_name_its_backend() {
        let old = owner().described("nomad-haproxy:nomad default/api default/web").expect("ours");
        assert_eq!((old.backend, old.services.len()), (None, 2));
        assert_eq!(owner().described("nomad-haproxy:nomad"), Some(Described { backend: None, services: vec![] }));
    }

    #[test]
    fn any_number_of_services_is_one_line_that_haproxy_takes() {
        let key = |n| ServiceKey { namespace: "default".into(), name: format!("a,{n}") };
        let services: Vec<_> = (0..500).map(key).collect();
        let text = owner().describe(&shop(), &services);
        assert!(text.split(' ').count() < 64);
        assert_eq!(owner().described(&text), Some(Described { backend: Some("shop".into()), services }));
    }

    proptest! {
        #[test]
        fn a_description_is_read_back_for_any_service_name(namespace in ".{1,40}", name in ".{1,40}") {
            let key = ServiceKey { namespace, name };
            let text = owner().describe(&shop(), [&key]);
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
            prop_assert!(!text.contains(['"', '\'', '\\', '#', '$']));
            prop_assert_eq!(owner().described(&text), Some(Described { backend: Some("shop".into()), services: vec![key] }));
        }
    }
}
