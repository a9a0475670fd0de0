//! A fuzzer over catalog + configuration → plan → text → plan: `make fuzz`, and a little of it with every
//! `make test`.
//!
//! A case is any configuration file, any settings, and up to five steps: a person edits the file, the clock moves,
//! Nomad reports any catalog, a pass runs. The properties are in [`check`]: nothing panics, no foreign byte changes, a
//! second pass has nothing to do, the plan is split correctly into live and structural, instances that are gone need no
//! reload, what is held stays, HAProxy accepts the result if it accepted the original, and what was written is read
//! back.
//!
//! `FUZZ_CASES`: how many cases. `FUZZ_HAPROXY`: HAProxy validates one case in so many; 0: none. `FUZZ_JOBS`: how many
//! in parallel. A failing case is printed as small as it can be made, and its seed is kept in
//! `proptest-regressions/fuzz.txt`, to be run first from then on.

#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::format_collect,
    clippy::unused_self,
    clippy::derivable_impls,
    clippy::unnecessary_wraps,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    clippy::cast_lossless,
    clippy::too_many_lines,
    clippy::too_many_arguments,
    clippy::struct_excessive_bools,
    clippy::fn_params_excessive_bools,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "tests"
)]

mod case;
mod catalog;
mod check;
mod config;
mod foreign;
mod hand;
mod lines;
mod tally;
mod validate;

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestError, TestRunner};

use case::Case;
use tally::Tally;

/// Cases between two checks whether another thread has found something.
const CHUNK: u32 = 500;
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

thread_local! {
    /// Where the last panic was, and its message.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn setting(name: &str, default: u32) -> u32 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, a number is needed")),
        Err(_) => default,
    }
}

#[test]
fn any_catalog_over_any_configuration() {
    let cases = setting("FUZZ_CASES", 4000);
    // The short form that goes with every `make test` has the same cases each time; `make fuzz` looks for new ones.
    let is_short = std::env::var_os("FUZZ_CASES").is_none();
    let sample = setting("FUZZ_HAPROXY", 50);
    let jobs = setting("FUZZ_JOBS", std::thread::available_parallelism().map_or(1, |jobs| jobs.get() as u32).min(8));
    let tally = Tally::default();
    let found = Mutex::new(None);
    let said = Mutex::new(Instant::now());
    let usual = panic::take_hook();
    panic::set_hook(Box::new(|info| PANIC.set(info.to_string())));
    std::thread::scope(|scope| {
        for job in 0..jobs {
            let share = cases / jobs + u32::from(job < cases % jobs);
            let (tally, found, said) = (&tally, &found, &said);
            scope.spawn(move || {
                let mut left = share;
                while left > 0 && found.lock().is_ok_and(|found| found.is_none()) {
                    let chunk = left.min(CHUNK);
                    left -= chunk;
                    let seed = match is_short {
                        true => RngSeed::Fixed((u64::from(job) << 32) | u64::from(left)),
                        false => RngSeed::Random,
                    };
                    if let Err(failure) = run(chunk, sample, seed, tally)
                        && let Ok(mut found) = found.lock()
                    {
                        found.get_or_insert(failure);
                    }
                    progress(tally, said);
                }
            });
        }
    });
    panic::set_hook(usual);
    eprintln!("{tally}");
    if let Some(failure) = found.into_inner().expect("no thread panics outside of a case") {
        panic!("{failure}");
    }
    if cases >= 2000 {
        let with_haproxy = sample > 0 && cases / sample > 50 && !validate::series().is_empty();
        assert_eq!(tally.missing(with_haproxy), None, "the generators never came to it");
    }
}

fn run(cases: u32, sample: u32, seed: RngSeed, tally: &Tally) -> Result<(), String> {
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/fuzz.txt"))),
        max_shrink_iters: 20_000,
        rng_seed: seed,
        ..Config::default()
    };
    TestRunner::new(config).run(&case::cases(sample), |case| one(&case, tally)).map_err(|error| match error {
        TestError::Fail(reason, case) => format!("{reason}\nThe smallest case: {case:?}"),
        TestError::Abort(reason) => format!("the generators gave up: {reason}"),
    })
}

fn one(case: &Case, tally: &Tally) -> Result<(), TestCaseError> {
    let result = panic::catch_unwind(AssertUnwindSafe(|| check::case(case, tally)));
    tally.cases.fetch_add(1, Relaxed);
    result.unwrap_or_else(|_| Err(PANIC.take())).map_err(TestCaseError::fail)
}

fn progress(tally: &Tally, said: &Mutex<Instant>) {
    if let Ok(mut said) = said.lock()
        && said.elapsed() > PROGRESS
    {
        *said = Instant::now();
        eprintln!("{tally}");
    }
}
