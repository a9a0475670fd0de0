//! Whose a backend or a server is, and how the configuration says so.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::name::valid;
use super::{Invalid, ServiceKey};

/// Whose a backend or a server is: the `owner` setting of the controller that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(String);

impl FromStr for Owner {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let ok = !value.is_empty()
            && value.len() <= 64
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        valid("owner", "letters, digits and - _ . only, 64 at the most", value, ok).map(Self)
    }
}

impl Owner {
    /// What the description of every backend begins with that a controller makes, of whatever owner.
    pub const PREFIX: &str = "nomad-haproxy:";
    /// Services that are set off by a space, the others by a comma: HAProxy refuses a line of more than 64 words
    /// (`MAX_LINE_ARGS`).
    const WORDS: usize = 32;

    /// The owner's name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The description of a backend that we make: the mark first, then whom it serves.
    pub fn describe<'a>(&self, services: impl IntoIterator<Item = &'a ServiceKey>) -> String {
        let mut text = format!("{}{}", Self::PREFIX, self.0);
        for (number, service) in services.into_iter().enumerate() {
            text.push(if number < Self::WORDS { ' ' } else { ',' });
            text.push_str(&service.to_word());
        }
        text
    }

    /// The services in a description that carries this mark, in its order; `None`: it does not.
    pub fn services(&self, description: &str) -> Option<Vec<ServiceKey>> {
        let mut words = description.split([' ', ',']).filter(|word| !word.is_empty());
        if words.next()?.strip_prefix(Self::PREFIX)? != self.0 {
            return None;
        }
        let mut seen = BTreeSet::new();
        Some(words.filter_map(ServiceKey::from_word).filter(|service| seen.insert(service.clone())).collect())
    }
}

/// What is not plain in a name from outside, as `%XX`: one word, whatever it held.
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

    #[test]
    fn another_owners_mark_is_not_ours() {
        let owner: Owner = "nomad".parse().expect("an owner");
        let key = ServiceKey { namespace: "default".into(), name: "api".into() };
        let text = owner.describe([&key]);
        assert_eq!(text, "nomad-haproxy:nomad default/api");
        assert!("nomad2".parse::<Owner>().expect("an owner").services(&text).is_none());
        assert!(owner.services("my own words").is_none());
        assert!(owner.services("").is_none());
    }

    #[test]
    fn any_number_of_services_is_one_line_that_haproxy_takes() {
        let owner: Owner = "nomad".parse().expect("an owner");
        let key = |n| ServiceKey { namespace: "default".into(), name: format!("a,{n}") };
        let services: Vec<_> = (0..500).map(key).collect();
        let text = owner.describe(&services);
        assert!(text.split(' ').count() < 64);
        assert_eq!(owner.services(&text), Some(services));
    }

    proptest! {
        #[test]
        fn whatever_a_service_is_called_its_description_is_read_back(namespace in ".{1,40}", name in ".{1,40}") {
            let owner: Owner = "nomad".parse().expect("an owner");
            let key = ServiceKey { namespace, name };
            let text = owner.describe([&key]);
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
            prop_assert!(!text.contains(['"', '\'', '\\', '#', '$']));
            prop_assert_eq!(owner.services(&text), Some(vec![key]));
        }
    }
}
