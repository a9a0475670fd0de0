//! What is not ours in a file, byte by byte, by rules that are independent of the edit under test.

use nomad_haproxy::desired::Owner;
use nomad_haproxy::haproxy::parse::{self, ServerLine};
use nomad_haproxy::haproxy::text::{ConfigText, Directive};
use nomad_haproxy::observed::Observed;

/// The lines that are in no section of ours, are not a server of ours, and are not the header of the version.
///
/// In a section of ours foreign servers and lines such as `.if` count, since neither is ours. Blank lines do not: one
/// separates each section of ours, and it is unknown which one after a person has moved them. A last line without its
/// end is given one, as HAProxy refuses a file without it.
pub fn lines(observed: &Observed, owner: &Owner) -> Vec<String> {
    let lines = observed.text.lines();
    let mut ours = vec![false; lines.len()];
    for backend in observed.backends.values().filter(|backend| backend.is_ours()) {
        ours[backend.section.lines.clone()].fill(true);
    }
    let profiles = format!("nomad-haproxy-{}-", owner.name());
    for section in observed.text.sections() {
        if section.kind == "defaults" && section.name.starts_with(&profiles) {
            ours[section.lines].fill(true);
        }
    }
    for at in observed.frontends.values().flat_map(|frontend| frontend.rules.keys()) {
        ours[*at] = true;
    }
    for (at, line) in lines.iter().enumerate() {
        let directive = Directive::parse(line);
        match directive.keyword() {
            "server" => ours[at] = is_our_server(&directive, at, observed, owner),
            keyword if keyword.starts_with('.') => ours[at] = false,
            _ => {}
        }
    }
    let foreign = lines.iter().zip(&ours).filter(|(_, ours)| !**ours).map(|(line, _)| line);
    let mut foreign: Vec<String> = foreign.filter(|line| !line.trim().is_empty()).cloned().collect();
    strip_header(&mut foreign);
    if let Some(last) = foreign.last_mut()
        && !last.ends_with('\n')
    {
        last.push('\n');
    }
    foreign
}

/// The headers and lines of sections of an unknown kind.
pub fn unknown(observed: &Observed, owner: &Owner) -> Vec<String> {
    let sections = observed.text.sections().into_iter().filter(|section| !section.is_known());
    let lines = sections.flat_map(|section| observed.text.lines()[section.lines].to_vec());
    let lines = lines.map(|line| if line.ends_with('\n') { line } else { line + "\n" });
    lines.filter(|line| !matches!(parse::server(&Directive::parse(line), owner), ServerLine::Ours(..))).collect()
}

/// Whether these lines are the same, except for comments that were above the last directive of a section of ours and
/// are below it now: there they belong to no section.
pub fn is_kept(was: &[String], is: &[String]) -> bool {
    let mut left = was.iter().peekable();
    let is_comment = |line: &String| line.trim_start().starts_with('#');
    is.iter().all(|line| left.next_if_eq(&line).is_some() || is_comment(line)) && left.peek().is_none()
}

fn is_our_server(directive: &Directive, at: usize, observed: &Observed, owner: &Owner) -> bool {
    observed.backends.values().any(|backend| backend.section.lines.contains(&at))
        && matches!(parse::server(directive, owner), ServerLine::Ours(..))
}

/// A whole file without the header of the version, and with the end of its last line.
pub fn body(file: &[u8]) -> Vec<u8> {
    let mut lines = ConfigText::from_bytes(file).lines().to_vec();
    strip_header(&mut lines);
    if let Some(last) = lines.last_mut()
        && !last.ends_with('\n')
    {
        last.push('\n');
    }
    nomad_haproxy::haproxy::bytes::encode(&lines.concat()).into_owned()
}

fn strip_header(lines: &mut Vec<String>) {
    let header = lines.iter().take_while(|line| line.starts_with('#') || line.trim().is_empty()).count();
    let mut at = 0;
    lines.retain(|line| {
        at += 1;
        at > header || !(line.starts_with("# _version=") || line.starts_with("# _md5hash="))
    });
}

/// Whether anything in this file may be treated as ours.
pub fn has_marks(file: &[u8]) -> bool {
    let has = |mark: &[u8]| file.windows(mark.len()).any(|window| window == mark);
    has(b"nomad-haproxy:") || has(b"owner")
}

/// Whether all these lines are in the others, in their order.
pub fn is_within(lines: &[u8], others: &[u8]) -> bool {
    let mut others = others.split_inclusive(|byte| *byte == b'\n');
    lines.split_inclusive(|byte| *byte == b'\n').all(|line| others.any(|other| other == line))
}
