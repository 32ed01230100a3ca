//! Owns fio jobs: their description, and what their report says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::Guest;

/// A fio job over one block device.
#[derive(Clone, Debug)]
pub struct Fio {
    device: String,
    options: Vec<String>,
    limit: Duration,
}

/// What a finished job reports, summed over its threads.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Operations a second over the whole run.
    pub iops: f64,
    /// Mean completion latency, microseconds.
    pub latency_us_mean: f64,
    /// 99th percentile of the completion latency, microseconds.
    pub latency_us_p99: f64,
}

impl Fio {
    /// Random mixed 4 KiB reads and writes at queue depth 32 in two threads of 12 MiB each, every
    /// written block checked by CRC32C while the job goes on and again at its end.
    pub fn verify(device: &str) -> Fio {
        Fio::new(device, "randrw").options(&[
            "--bs=4k --size=12m --offset_increment=16m --numjobs=2",
            "--verify=crc32c --verify_fatal=1 --verify_backlog=512 --verify_state_save=0",
        ])
    }

    /// The same, over and over for this long, for loads amid which paths are lost. Not by io_uring: it
    /// submits so as not to block, and where the kernel sends such a request again while the path that
    /// came back is still frozen, it ends with EAGAIN instead of waiting.
    pub fn verify_for(device: &str, seconds: u64) -> Fio {
        let mut fio = Fio::verify(device).options(&["--ioengine=libaio"]);
        fio.options
            .push(format!("--time_based --runtime={seconds}"));
        fio.limit += Duration::from_secs(seconds);
        fio
    }

    /// A job of no checks, for speed.
    pub fn speed(device: &str, pattern: &str, depth: u32, seconds: u64) -> Fio {
        let mut fio = Fio::new(device, pattern);
        fio.options.push(format!(
            "--bs=4k --time_based --runtime={seconds} --norandommap=1"
        ));
        fio.depth(depth)
    }

    fn new(device: &str, pattern: &str) -> Fio {
        let options = format!(
            "--name=lab --filename={device} --allow_file_create=0 --rw={pattern} --direct=1 \
             --ioengine=io_uring --group_reporting=1 --output-format=json --randseed=7"
        );
        let fio = Fio {
            device: device.to_owned(),
            options: vec![options],
            limit: LIMIT,
        };
        fio.depth(32)
    }

    /// Adds options as fio spells them; later ones win.
    pub fn options(mut self, options: &[&str]) -> Fio {
        self.options
            .extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Sets the queue depth of each thread.
    pub fn depth(mut self, depth: u32) -> Fio {
        self.options.push(format!("--iodepth={depth}"));
        self
    }

    /// The script that runs the job.
    pub fn script(&self) -> String {
        // A missing device must fail and never become a file of that name.
        format!(
            "[ -b {} ] || exit 9\nexec fio {}",
            self.device,
            self.options.join(" ")
        )
    }

    /// How long the job may take at most.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Runs the job; any I/O or verify error fails.
    pub fn run(&self, guest: &Guest) -> Result<Report> {
        let output = guest.attempt(&self.script(), self.limit)?;
        ensure!(
            output.status == 0,
            "fio ended with {}: {}",
            output.status,
            output.stderr
        );
        report(&output.stdout)
    }
}

/// Time for a short job on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Reads fio's JSON; any error of any thread fails.
pub fn report(text: &str) -> Result<Report> {
    let start = text
        .find('{')
        .with_context(|| format!("no report from fio: {text}"))?;
    let all: Value = serde_json::from_str(&text[start..]).context("fio's report")?;
    let job = &all["jobs"][0];
    ensure!(job["error"] == 0, "fio reports error {}", job["error"]);
    let number = |side: &str, name: &str| job[side][name].as_u64().context("a number from fio");
    let (reads, writes) = (number("read", "total_ios")?, number("write", "total_ios")?);
    let real = |value: &Value| value.as_f64().unwrap_or(0.0);
    // The side with more operations speaks for the job's latency.
    let side = if reads >= writes {
        &job["read"]
    } else {
        &job["write"]
    };
    Ok(Report {
        reads,
        writes,
        iops: real(&job["read"]["iops"]) + real(&job["write"]["iops"]),
        latency_us_mean: real(&side["clat_ns"]["mean"]) / 1e3,
        latency_us_p99: real(&side["clat_ns"]["percentile"]["99.000000"]) / 1e3,
    })
}
