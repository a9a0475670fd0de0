//! The process's own metrics, under the names that all client libraries of Prometheus use (Prometheus documentation,
//! "Writing client libraries", "Process metrics").

use std::fmt::Error;

use procfs::process::{LimitValue, Process, Stat};
use procfs::{boot_time_secs, page_size, ticks_per_second};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::family::about;

/// Reads `/proc/self` at each scrape. What cannot be read is absent.
#[derive(Debug)]
pub(super) struct Own;

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Ok(process) = Process::myself() else { return Ok(()) };
        if let Ok(stat) = process.stat() {
            times(&mut encoder, &stat)?;
            memory(&mut encoder, &stat)?;
        }
        let help = "File descriptors that are open.";
        let open = process.fd_count().ok().map(|open| ([], open));
        about("open_fds", help).gauge(&mut encoder, open)?;
        let help = "File descriptors that may be open.";
        let most = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(([], most)),
            LimitValue::Unlimited => None,
        });
        about("max_fds", help).gauge(&mut encoder, most)
    }
}

fn times(encoder: &mut DescriptorEncoder<'_>, stat: &Stat) -> Result<(), Error> {
    let help = "CPU time that was spent, in user and system mode.";
    let spent = [([], seconds(stat.utime + stat.stime))];
    about("cpu", help).in_unit(&Unit::Seconds).counter(encoder, spent)?;
    let help = "When the process started, since 1970.";
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
    let began = boot_time_secs().ok().map(|boot| ([], boot as f64 + seconds(stat.starttime)));
    about("start_time", help).in_unit(&Unit::Seconds).gauge(encoder, began)
}

fn memory(encoder: &mut DescriptorEncoder<'_>, stat: &Stat) -> Result<(), Error> {
    let resident = [([], stat.rss * page_size())];
    about("resident_memory", "Resident memory.").in_unit(&Unit::Bytes).gauge(encoder, resident)?;
    about("virtual_memory", "Virtual memory.").in_unit(&Unit::Bytes).gauge(encoder, [([], stat.vsize)])?;
    about("threads", "Threads of the process.").gauge(encoder, [([], stat.num_threads)])
}

/// The kernel counts in ticks, mostly of 10 ms.
fn seconds(ticks: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "ticks since the start of the machine are far below 2^52")]
    let seconds = ticks as f64 / ticks_per_second() as f64;
    seconds
}
