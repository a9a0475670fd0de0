//! What the documents show: their blocks, and the commands in them in the order in which a reader comes to them.

use std::fs;

use yaml_rust2::{Yaml, YamlLoader};

use super::root;

/// The documents with commands: the README first, then the pages in the order in which it names them.
pub fn pages() -> Vec<Page> {
    let readme = Page::read("README.md");
    let links = readme.text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let mut names: Vec<String> = Vec::new();
    for link in links.filter(|link| link.starts_with("docs/") || *link == "deploy/README.md") {
        if !names.iter().any(|name| name == link) {
            names.push(link.to_owned());
        }
    }
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = format!("docs/{}", entry.unwrap().file_name().to_str().unwrap());
        assert!(names.contains(&name), "README.md does not lead to {name}");
    }
    std::iter::once(readme).chain(names.iter().map(|name| Page::read(name))).collect()
}

pub struct Page {
    /// Its path in the repository.
    pub name: String,
    pub text: String,
}

/// A fenced block.
pub struct Block {
    /// The first line of what is in it, from 1.
    pub line: usize,
    pub language: String,
    pub text: String,
}

/// A command as the document has it.
#[derive(Debug, Clone)]
pub struct Command {
    pub page: String,
    pub line: usize,
    pub text: String,
    pub shell: Shell,
}

/// Who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// A person.
    Prompt,
    /// A step of GitHub Actions.
    Github,
    /// A job of GitLab: all its lines in one shell.
    Gitlab,
}

/// What the first word of code in the prose is if that is a command line, and not a word such as `haproxy`.
const PROGRAMS: [&str; 9] =
    ["nomad-haproxy", "nomad", "haproxy", "curl", "make", "cargo", "promtool", "docker", "systemctl"];

/// A part of a page: prose, or a block.
enum Part {
    Prose { line: usize, text: String },
    Block(Block),
}

impl Page {
    pub fn read(name: &str) -> Self {
        Self { name: name.to_owned(), text: fs::read_to_string(root().join(name)).unwrap() }
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::Prose { line: 1, text: String::new() }];
        for (line, text) in (1..).zip(self.text.lines()) {
            let fence = text.trim_start().strip_prefix("```");
            match (parts.last_mut().unwrap(), fence) {
                (Part::Prose { .. }, Some(language)) => {
                    parts.push(Part::Block(Block {
                        line: line + 1,
                        language: language.to_owned(),
                        text: String::new(),
                    }));
                }
                (Part::Block(_), Some(_)) => parts.push(Part::Prose { line: line + 1, text: String::new() }),
                (Part::Prose { text: so_far, .. } | Part::Block(Block { text: so_far, .. }), None) => {
                    *so_far += text;
                    so_far.push('\n');
                }
            }
        }
        assert!(matches!(parts.last(), Some(Part::Prose { .. })), "{}: a block has no end", self.name);
        parts
    }

    pub fn blocks(&self) -> Vec<Block> {
        let blocks = self.parts().into_iter().filter_map(|part| match part {
            Part::Block(block) => Some(block),
            Part::Prose { .. } => None,
        });
        blocks.collect()
    }

    /// All commands, in order: those of shell blocks and of pipelines, and command lines in the prose.
    pub fn commands(&self) -> Vec<Command> {
        let found = self.parts().into_iter().flat_map(|part| match part {
            Part::Prose { line, text } => in_prose(line, &text),
            Part::Block(Block { line, language, text }) => match language.as_str() {
                "sh" | "bash" | "console" => in_shell(line, &text),
                "yaml" => in_pipeline(line, &text),
                _ => Vec::new(),
            },
        });
        let command = |(line, text, shell)| Command { page: self.name.clone(), line, text, shell };
        found.map(command).collect()
    }
}

type Found = (usize, String, Shell);

/// One command for each line that is not continued; a comment may have a command line in code.
fn in_shell(line: usize, text: &str) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut continued = false;
    for (line, text) in (line..).zip(text.lines()) {
        let text = text.strip_prefix("$ ").unwrap_or(text);
        match text.trim_start().strip_prefix('#') {
            _ if continued => {
                let (_, last, _) = found.last_mut().unwrap();
                *last += "\n";
                *last += text;
            }
            Some(comment) => found.extend(in_prose(line, comment)),
            None if text.trim().is_empty() => {}
            None => found.push((line, text.to_owned(), Shell::Prompt)),
        }
        continued = text.ends_with('\\');
    }
    found
}

/// Code that is a whole command line. In a table of commands, the first column lacks the program.
fn in_prose(line: usize, text: &str) -> Vec<Found> {
    let mut is_commands = false;
    let lines = text.lines().map(|line| {
        is_commands = line.starts_with("| command |") || (is_commands && line.starts_with('|'));
        match line.split_once(" | ") {
            Some((first, rest)) if is_commands => format!("{} | {rest}", first.replace(" `", " `nomad-haproxy ")),
            _ => line.to_owned(),
        }
    });
    let (mut found, mut at) = (Vec::new(), line);
    for (n, part) in lines.collect::<Vec<_>>().join("\n").split('`').enumerate() {
        let code = part.split_whitespace().collect::<Vec<_>>().join(" ");
        if n % 2 == 1 && is_command(&code) {
            found.push((at, code, Shell::Prompt));
        }
        at += part.matches('\n').count();
    }
    found
}

fn is_command(code: &str) -> bool {
    let mut words = code.split(' ').skip_while(|word| is_assignment(word));
    words.next().is_some_and(|program| PROGRAMS.contains(&program)) && words.next().is_some()
}

/// `NAME=VALUE`, before a command.
pub fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// What `run` and `script` say in a pipeline, wherever they are.
fn in_pipeline(line: usize, text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for document in YamlLoader::load_from_str(text).unwrap() {
        scripts(&document, &mut |text, shell| found.push((line, text, shell)));
    }
    found
}

fn scripts(yaml: &Yaml, found: &mut impl FnMut(String, Shell)) {
    for entry in yaml.as_vec().into_iter().flatten() {
        scripts(entry, found);
    }
    for (key, value) in yaml.as_hash().into_iter().flatten() {
        match (key.as_str(), value) {
            (Some("run"), Yaml::String(text)) => found(text.clone(), Shell::Github),
            (Some("script"), Yaml::Array(lines)) => {
                let lines: Vec<&str> = lines.iter().map(|line| line.as_str().unwrap()).collect();
                found(lines.join("\n"), Shell::Gitlab);
            }
            _ => scripts(value, found),
        }
    }
}
