//! What a person does to a file between two passes.

use proptest::prelude::*;
use proptest::sample::select;

use super::lines::{ODD, OURS};

/// One edit. Places are fractions of the file, so that they stay where they are when it shrinks.
#[derive(Debug, Clone)]
pub enum Edit {
    /// A line is removed.
    Delete(u16),
    /// A line is copied to another place.
    Copy(u16, u16),
    /// A section, header and all, is copied to the end.
    CopySection(u16),
    /// A new line.
    Insert(u16, &'static str),
    /// Something is added after a line.
    Behind(u16, &'static str),
    /// A word is removed from a line, or doubled.
    Word(u16, u16, bool),
    /// A line is indented in another way.
    Indent(u16, &'static str),
    /// Bytes are inserted into a line.
    Bytes(u16, Vec<u8>),
    /// The file is truncated.
    Cut(u16),
}

/// The edits between two steps: none, most of the time.
pub fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop_oneof![5 => Just(Vec::new()), 2 => prop::collection::vec(edit(), 1..4)]
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<u16>;
    let behind = &[
        " weight 9",
        " disabled",
        " # words",
        " # {\"owner\":\"nomad\",\"id\":\"i0\"}",
        " check",
        "\r",
        " \\",
        "\"",
        " 'x",
    ];
    prop_oneof![
        2 => at().prop_map(Edit::Delete),
        2 => (at(), at()).prop_map(|(from, to)| Edit::Copy(from, to)),
        1 => at().prop_map(Edit::CopySection),
        4 => (at(), select(ODD)).prop_map(|(at, line)| Edit::Insert(at, line)),
        2 => (at(), select(OURS)).prop_map(|(at, line)| Edit::Insert(at, line)),
        2 => (at(), select(&behind[..])).prop_map(|(at, words)| Edit::Behind(at, words)),
        2 => (at(), at(), any::<bool>()).prop_map(|(at, word, twice)| Edit::Word(at, word, twice)),
        1 => (at(), select(&["", " ", "\t", "        "][..])).prop_map(|(at, indent)| Edit::Indent(at, indent)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..4)).prop_map(|(at, bytes)| Edit::Bytes(at, bytes)),
        1 => at().prop_map(Edit::Cut),
    ]
}

fn scaled(at: u16, length: usize) -> usize {
    usize::from(at) * length / (usize::from(u16::MAX) + 1)
}

/// The file after the edits.
pub fn edited(file: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = file.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    for edit in edits {
        one(&mut lines, edit);
        let joined = lines.concat();
        lines = joined.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    }
    lines.concat()
}

fn one(lines: &mut Vec<Vec<u8>>, edit: &Edit) {
    let count = lines.len();
    if let Edit::Insert(at, line) = edit {
        let at = scaled(*at, count + 1);
        if let Some(above) = at.checked_sub(1).map(|above| &mut lines[above])
            && above.last() != Some(&b'\n')
        {
            above.push(b'\n');
        }
        lines.insert(at, format!("{line}\n").into_bytes());
        return;
    }
    if count == 0 {
        return;
    }
    let content = |line: &[u8]| line.strip_suffix(b"\n").unwrap_or(line).to_vec();
    match edit {
        Edit::Insert(..) => unreachable!("done above"),
        Edit::Delete(at) => drop(lines.remove(scaled(*at, count))),
        Edit::Copy(from, to) => {
            let line = [content(&lines[scaled(*from, count)]), vec![b'\n']].concat();
            lines.insert(scaled(*to, count), line);
        }
        Edit::CopySection(at) => {
            let is_header = |line: &Vec<u8>| line.first().is_some_and(u8::is_ascii_alphabetic);
            let at = scaled(*at, count);
            let start = lines[..=at].iter().rposition(is_header).unwrap_or(0);
            let end = lines[at + 1..].iter().position(is_header).map_or(count, |end| at + 1 + end);
            let copy = lines[start..end].to_vec();
            lines.push(b"\n".to_vec());
            lines.extend(copy);
        }
        Edit::Behind(at, words) => {
            let line = &mut lines[scaled(*at, count)];
            *line = [&content(line), words.as_bytes(), b"\n"].concat();
        }
        Edit::Word(at, word, twice) => {
            let line = &mut lines[scaled(*at, count)];
            let text = content(line);
            let mut words: Vec<&[u8]> = text.split(|byte| *byte == b' ').collect();
            let word = scaled(*word, words.len());
            if *twice {
                words.insert(word, words[word]);
            } else {
                let _ = words.remove(word);
            }
            *line = [words.join(&b' '), vec![b'\n']].concat();
        }
        Edit::Indent(at, indent) => {
            let line = &mut lines[scaled(*at, count)];
            *line = [indent.as_bytes(), line.trim_ascii_start()].concat();
            if line.is_empty() {
                line.push(b'\n');
            }
        }
        Edit::Bytes(at, bytes) => {
            let line = &mut lines[scaled(*at, count)];
            let middle = line.len() / 2;
            line.splice(middle..middle, bytes.iter().copied());
        }
        Edit::Cut(at) => {
            let mut file = lines.concat();
            file.truncate(file.len() - scaled(*at, file.len().min(200)));
            *lines = vec![file];
        }
    }
}
