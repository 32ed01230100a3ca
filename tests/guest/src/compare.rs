//! Owns the comparison of corebay with the kernel's target: same guest, same initiator, same disk.
//!
//! Both export memory disks on the guest's own loopback. Figures of an emulated machine mean nothing
//! by themselves; their ratio does.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::endpoint::{Medium, NQN, Namespace, PORT};
use crate::fio::{Fio, Report};
use crate::guest::Guest;
use crate::image::Image;
use crate::initiator::Initiator;
use crate::{machine, nvmet};

/// One measured load on one target.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// `nvmet`, `corebay` over the same kernel disk, or `corebay-ram` over its own memory disk.
    pub target: &'static str,
    /// fio's pattern.
    pub pattern: &'static str,
    /// The queue depth.
    pub depth: u32,
    /// What fio reports.
    pub report: Report,
}

/// The loads: pattern and queue depth.
const LOADS: &[(&str, u32)] = &[
    ("randread", 1),
    ("randwrite", 1),
    ("randread", 32),
    ("randwrite", 32),
    ("randread", 128),
    ("randwrite", 128),
];

const DISK: Namespace = Namespace {
    nsid: 1,
    medium: Medium::Memory,
    mib: 128,
    block: 4096,
};
const CONNECT: &str = "-i 2";

/// Measures the kernel's target and the corebay program, one after the other, `seconds` each load.
pub fn run(image: &Image, corebay: &Path, seconds: u64) -> Result<Vec<Measurement>> {
    let guest = Guest::boot(image, machine::loopback())?;
    fs::copy(corebay, guest.share().join("corebay")).context("copy corebay into the guest")?;
    let mut all = Vec::new();
    let kernel = nvmet::export(&guest, &[DISK])?;
    let mut measure = |target, address| -> Result<()> {
        let host = Initiator::new(&guest);
        let controller = host.connect(address, PORT, CONNECT)?;
        let device = host.device(&controller, DISK.nsid)?;
        // The first pass over a memory disk allocates its pages.
        guest.run(&format!(
            "dd if=/dev/zero of={device} bs=1M oflag=direct status=none || true"
        ))?;
        for &(pattern, depth) in LOADS {
            let report = Fio::speed(&device, pattern, depth, seconds).run(&guest)?;
            all.push(Measurement {
                target,
                pattern,
                depth,
                report,
            });
        }
        host.disconnect_all()
    };
    measure("nvmet", kernel.address())?;
    nvmet::remove(&guest)?;
    nvmet::export(&guest, &[DISK])?;
    for (target, disk, last) in [
        ("corebay", "/dev/lab1", 11),
        ("corebay-ram", "ram:128MiB,block=4096", 12),
    ] {
        let address = Ipv4Addr::new(127, 0, 0, last);
        serve(&guest, disk, address)?;
        let measured = measure(target, address);
        let said = guest.run(&format!(
            "kill $(cat /tmp/corebay.{address}.id); cat /tmp/corebay.{address}"
        ));
        measured.with_context(|| format!("{target} said {}", said.unwrap_or_default()))?;
    }
    Ok(all)
}

/// Starts corebay inside the guest with one disk and waits until it serves.
pub fn serve(guest: &Guest, disk: &str, address: Ipv4Addr) -> Result<()> {
    // A copy on tmpfs: pages of a program must not come over the share while it is measured.
    guest.run(&format!(
        "cp -n /share/corebay /tmp/corebay.program
         setsid /tmp/corebay.program serve --data-dir /tmp/data.{address} --nqn {NQN} \
           --listen {address}:{PORT} --discovery {address}:8009 --cores 0 --disk '{disk}' \
           > /tmp/corebay.{address} 2>&1 < /dev/null &
         echo $! > /tmp/corebay.{address}.id"
    ))?;
    let ready = format!("grep -q ready /tmp/corebay.{address}");
    let answer = guest.until(&ready, Duration::from_secs(60));
    answer.with_context(|| {
        let said = guest
            .run(&format!("cat /tmp/corebay.{address}"))
            .unwrap_or_default();
        format!("corebay in the guest is not ready: {said}")
    })?;
    Ok(())
}

/// The measurements as a table, each load's lines together, with the ratio to the kernel's target.
pub fn table(all: &[Measurement]) -> String {
    let mut text = format!(
        "{:<10} {:>5}  {:<12} {:>9} {:>10} {:>10} {:>7}\n",
        "load", "depth", "target", "IOPS", "mean us", "p99 us", "ratio"
    );
    for &(pattern, depth) in LOADS {
        let load: Vec<_> = all
            .iter()
            .filter(|m| m.pattern == pattern && m.depth == depth)
            .collect();
        let base = load.first().map_or(f64::NAN, |first| first.report.iops);
        for Measurement { target, report, .. } in load {
            text += &format!(
                "{pattern:<10} {depth:>5}  {target:<12} {:>9.0} {:>10.0} {:>10.0} {:>7.2}\n",
                report.iops,
                report.latency_us_mean,
                report.latency_us_p99,
                report.iops / base
            );
        }
    }
    text
}
