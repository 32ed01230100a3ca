//! Owns the comparison of corebay's own NVMe driver with the kernel's: same guest, same emulated drive,
//! each in turns.
//!
//! The kernel's driver is measured by fio with io_uring, ours by `corebay drives bench`, in process, with
//! nothing above it. The drive changes hands once a round; the median of the rounds counts. Figures of an
//! emulated machine mean nothing by themselves; their ratio does.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::fio::Fio;
use crate::guest::Guest;
use crate::hardware::{Hardware, PLAIN};
use crate::image::Image;
use crate::inside::Inside;
use crate::machine;

/// The loads: pattern, and queue depth.
const LOADS: &[(&str, u32)] = &[
    ("randread", 1),
    ("randread", 8),
    ("randread", 32),
    ("randread", 128),
    ("randwrite", 1),
    ("randwrite", 32),
];

/// fio and the bench have this processor to themselves.
const CPU: u32 = 1;

/// One load on one driver.
#[derive(Clone, Copy, Debug)]
struct Speed {
    iops: f64,
    latency_us_mean: f64,
    latency_us_p99: f64,
}

/// Measures both drivers; gives a table.
pub fn run(image: &Image, corebay: &Path, rounds: u32, seconds: u64) -> Result<String> {
    let guest = Guest::boot_with(image, machine::loopback(), Hardware::Drives)?;
    let inside = Inside::install(&guest, corebay)?;
    let mut kernels = vec![Vec::new(); LOADS.len()];
    let mut ours = vec![Vec::new(); LOADS.len()];
    for round in 1..=rounds {
        eprintln!("    round {round} of {rounds}");
        let device = kernels_device(&guest)?;
        if round == 1 {
            // Blocks that were never written are read without the medium.
            let fill =
                format!("dd if=/dev/zero of={device} bs=1M oflag=direct status=none || true");
            guest.run(&fill)?;
        }
        for (&(pattern, depth), speeds) in LOADS.iter().zip(&mut kernels) {
            let report = Fio::speed(&device, pattern, depth, seconds)
                .options(&[&format!("--cpus_allowed={CPU}")])
                .run(&guest)?;
            speeds.push(Speed {
                iops: report.iops,
                latency_us_mean: report.latency_us_mean,
                latency_us_p99: report.latency_us_p99,
            });
        }
        let bind = format!("drives bind {}", PLAIN.address);
        inside.command(&guest, &bind)?.success()?;
        for (&(pattern, depth), speeds) in LOADS.iter().zip(&mut ours) {
            speeds.push(bench(&guest, pattern, depth, seconds)?);
        }
        let unbind = format!("drives unbind {}", PLAIN.address);
        inside.command(&guest, &unbind)?.success()?;
    }
    Ok(table(&kernels, &ours))
}

fn kernels_device(guest: &Guest) -> Result<String> {
    let script = format!(
        "for namespace in /sys/bus/pci/devices/{}/nvme/nvme*/nvme*n1; do
           [ -b /dev/${{namespace##*/}} ] && echo /dev/${{namespace##*/}} && exit 0
         done
         exit 1",
        PLAIN.address
    );
    let device = guest.until(&script, Duration::from_secs(30));
    device.context("the kernel does not see the drive")
}

fn bench(guest: &Guest, pattern: &str, depth: u32, seconds: u64) -> Result<Speed> {
    let destroy = if pattern == "randwrite" {
        "--destroy"
    } else {
        ""
    };
    let script = format!(
        "ulimit -l unlimited
         exec taskset -c {CPU} /tmp/corebay drives -o json bench {} --depth {depth} \
           --time {seconds}s {destroy}",
        PLAIN.address
    );
    let limit = Duration::from_secs(60 + seconds);
    let said = guest.attempt(&script, limit)?.success()?;
    let said: Value = serde_json::from_str(&said).context("what the bench says")?;
    let number = |key: &str| {
        said[key]
            .as_f64()
            .with_context(|| format!("no {key}: {said:#}"))
    };
    Ok(Speed {
        iops: number("iops")?,
        latency_us_mean: number("latency_us_mean")?,
        latency_us_p99: number("latency_us_p99")?,
    })
}

/// The round with the median of IOPS.
fn median(speeds: &[Speed]) -> Speed {
    let mut sorted = speeds.to_vec();
    sorted.sort_by(|one, other| one.iops.total_cmp(&other.iops));
    sorted[sorted.len() / 2]
}

fn table(kernels: &[Vec<Speed>], ours: &[Vec<Speed>]) -> String {
    let mut text = format!(
        "| {:<9} | {:>5} | {:>11} | {:>9} | {:>6} | {:>14} | {:>12} | {:>13} | {:>11} |\n",
        "load",
        "depth",
        "kernel IOPS",
        "ours IOPS",
        "ratio",
        "kernel mean us",
        "ours mean us",
        "kernel p99 us",
        "ours p99 us"
    );
    text += "| --------- | ----: | ----------: | --------: | -----: | -------------: | -----------: | \
             ------------: | ----------: |\n";
    for ((&(pattern, depth), kernels), ours) in LOADS.iter().zip(kernels).zip(ours) {
        let (kernels, ours) = (median(kernels), median(ours));
        text += &format!(
            "| {pattern:<9} | {depth:>5} | {:>11.0} | {:>9.0} | {:>6.2} | {:>14.0} | {:>12.0} | \
             {:>13.0} | {:>11.0} |\n",
            kernels.iops,
            ours.iops,
            ours.iops / kernels.iops,
            kernels.latency_us_mean,
            ours.latency_us_mean,
            kernels.latency_us_p99,
            ours.latency_us_p99,
        );
    }
    text
}
