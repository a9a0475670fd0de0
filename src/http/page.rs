//! The page at `/`: static files that read `/api/v1`. They are part of the executable, and nothing they need is
//! elsewhere.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use sha2::{Digest, Sha256};

use super::Shared;

/// Only our own files are loaded, only the controller is asked, and no script or style is in the markup: should a name
/// from Nomad ever get into it, it does nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, content type, text.
type File = (&'static str, &'static str, &'static str);

/// A file of `src/http/page`, at the same path.
macro_rules! file {
    ($path:literal, $kind:expr) => {
        (concat!("/", $path), $kind, include_str!(concat!("page/", $path)))
    };
}

const FILES: [File; 11] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    file!("page.css", "text/css; charset=utf-8"),
    file!("page.js", SCRIPT),
    file!("page/backends.js", SCRIPT),
    file!("page/dom.js", SCRIPT),
    file!("page/folds.js", SCRIPT),
    file!("page/head.js", SCRIPT),
    file!("page/judge.js", SCRIPT),
    file!("page/passes.js", SCRIPT),
    file!("page/times.js", SCRIPT),
    file!("page/words.js", SCRIPT),
];

pub(super) fn routes() -> Router<Shared> {
    FILES.into_iter().fold(Router::new(), |router, file| router.route(file.0, serves(file)))
}

fn serves((_, kind, text): File) -> MethodRouter<Shared> {
    let tag = tag(text);
    get(async move |headers: HeaderMap| answer(kind, text, &tag, &headers))
}

/// The text's hash: an upgraded controller has another.
fn tag(text: &str) -> String {
    format!("\"{:x}\"", Sha256::digest(text))
}

fn answer(kind: &'static str, text: &'static str, tag: &str, request: &HeaderMap) -> Response {
    let headers: [(HeaderName, &str); 6] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A browser asks each time whether its copy is still the controller's.
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, tag),
    ];
    let has_it = request.get_all(header::IF_NONE_MATCH).iter().any(|value| names(value.as_bytes(), tag));
    match has_it {
        true => (StatusCode::NOT_MODIFIED, headers).into_response(),
        false => (headers, text).into_response(),
    }
}

/// Whether an `If-None-Match` names this text (RFC 9110, 13.1.2: the comparison is weak, as a proxy that compresses
/// makes a tag weak).
fn names(value: &[u8], tag: &str) -> bool {
    let tags = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.map(|other| other.strip_prefix(b"W/").unwrap_or(other)).any(|other| other == tag.as_bytes() || other == b"*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/page");
        let of = |folder: &std::path::Path| {
            let files = std::fs::read_dir(folder).expect("the folder of the page").flatten().map(|entry| entry.path());
            files.filter(|path| path.is_file()).count()
        };
        assert_eq!(of(&folder) + of(&folder.join("page")), FILES.len());
    }

    #[test]
    fn no_file_parses_markup_or_runs_text() {
        let banned =
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"];
        for (path, _, text) in FILES {
            assert!(!text.contains("http://") && !text.contains("https://"), "{path} names another server");
            for word in banned {
                assert!(!text.contains(word), "{path} uses {word}");
            }
        }
    }

    #[test]
    fn every_answer_has_the_policy_and_is_asked_for_again() {
        for (path, kind, text) in FILES {
            for request in [
                HeaderMap::new(),
                [(header::IF_NONE_MATCH, axum::http::HeaderValue::from_static("*"))].into_iter().collect(),
            ] {
                let answer = answer(kind, text, &tag(text), &request);
                let has = |name: HeaderName, value: &str| assert_eq!(answer.headers()[&name], value, "{path}: {name}");
                has(header::CONTENT_TYPE, kind);
                has(header::CACHE_CONTROL, "no-cache");
                has(header::REFERRER_POLICY, "no-referrer");
                has(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
                has(
                    header::CONTENT_SECURITY_POLICY,
                    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                );
            }
        }
    }

    #[test]
    fn a_copy_of_this_text_is_not_sent_again() {
        let (_, kind, text) = FILES[0];
        let asked = |value: Option<&str>| {
            let headers = value.map(|value| (header::IF_NONE_MATCH, value.parse().expect("a header value")));
            answer(kind, text, &tag(text), &headers.into_iter().collect()).status()
        };
        for copy in [tag(text), format!("W/{}", tag(text)), format!("\"x\", {}", tag(text)), "*".to_owned()] {
            assert_eq!(asked(Some(&copy)), StatusCode::NOT_MODIFIED, "{copy}");
        }
        for other in [None, Some("\"x\""), Some("")] {
            assert_eq!(asked(other), StatusCode::OK, "{other:?}");
        }
    }
}
