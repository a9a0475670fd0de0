//! Any bytes as a `String` and back, so that a configuration file in any encoding can be edited as text.
//!
//! HAProxy reads bytes: a comment or a header value in Latin-1 works as well as one in UTF-8. Each byte that is not
//! part of valid UTF-8 becomes one character, as with Python's `surrogateescape`. Rust's `char` has no surrogates, so
//! the last 128 code points of the last private use plane represent the bytes 80 to FF. If a file contains such a code
//! point itself, its bytes are escaped one by one, so no two files become the same text.

use std::borrow::Cow;

/// With this added, the bytes 0x80–0xFF are U+10FF80–U+10FFFF.
const BASE: u32 = 0x10_FF00;
/// The first byte in UTF-8 of every code point from U+100000 on.
const LEAD: u8 = 0xF4;

/// Bytes as text; [`encode`] is the inverse.
pub fn decode(bytes: &[u8]) -> Cow<'_, str> {
    // The fast path, for nearly every file.
    if let Ok(text) = str::from_utf8(bytes)
        && !bytes.contains(&LEAD)
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match byte(c) {
                None => text.push(c),
                Some(_) => text.extend(c.encode_utf8(&mut [0; 4]).bytes().map(escape)),
            }
        }
        text.extend(chunk.invalid().iter().copied().map(escape));
    }
    Cow::Owned(text)
}

/// The bytes that a text of [`decode`] represents.
pub fn encode(text: &str) -> Cow<'_, [u8]> {
    if !is_escaped(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// A text of [`decode`] for people: what is not UTF-8 is shown as `\xE9`.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !is_escaped(text) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for chunk in encode(text).utf8_chunks() {
        shown.push_str(chunk.valid());
        shown.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
    }
    Cow::Owned(shown)
}

/// Whether a text of [`decode`] represents bytes that are valid UTF-8.
pub fn is_utf8(text: &str) -> bool {
    !is_escaped(text) || str::from_utf8(&encode(text)).is_ok()
}

fn is_escaped(text: &str) -> bool {
    text.as_bytes().contains(&LEAD) && text.chars().any(|c| byte(c).is_some())
}

/// The byte that a character represents, if any.
fn byte(c: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(c).checked_sub(BASE)?).ok()?;
    (!byte.is_ascii()).then_some(byte)
}

fn escape(byte: u8) -> char {
    if byte.is_ascii() {
        return char::from(byte);
    }
    char::from_u32(BASE + u32::from(byte)).expect("U+10FF80 to U+10FFFF are characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_byte_that_is_no_utf_8_is_one_character_and_is_shown_as_its_number() {
        let latin1 = decode(b"caf\xe9 \xc3\xa9\n");
        assert_eq!(latin1, "caf\u{10ffe9} \u{e9}\n");
        assert_eq!(shown(&latin1), "caf\\xE9 \u{e9}\n");
        assert!(!is_utf8(&latin1) && is_utf8("caf\u{e9}"));
    }

    #[test]
    fn a_character_that_stands_for_a_byte_is_escaped_itself() {
        let bytes = "\u{10ffe9}\u{10ff7f}".as_bytes();
        let text = decode(bytes);
        assert_ne!(text, decode(b"\xe9"));
        assert_eq!(text.chars().count(), 5);
        assert_eq!(encode(&text).as_ref(), bytes);
        assert_eq!(shown(&text), "\u{10ffe9}\u{10ff7f}");
        assert!(is_utf8(&text));
    }

    proptest! {
        #[test]
        fn any_bytes_round_trip(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..9),
                    "[\u{10ff70}-\u{10ffff}]{0,3}".prop_map(String::into_bytes),
                    "\\PC{0,9}\n".prop_map(String::into_bytes),
                ],
                0..20,
            )
        ) {
            let bytes = parts.concat();
            let text = decode(&bytes);
            prop_assert_eq!(encode(&text).into_owned(), bytes.clone());
            prop_assert_eq!(is_utf8(&text), str::from_utf8(&bytes).is_ok());
            // A line ends where it ended.
            prop_assert_eq!(text.split('\n').count(), bytes.split(|byte| *byte == b'\n').count());
        }
    }
}
