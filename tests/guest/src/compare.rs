//! Owns the comparison of corebay with the kernel's target: same guest, same initiator, same disk.
//!
//! All targets serve memory disks on the guest's own loopback, are connected at the same time and take
//! turns, load by load; the median of the rounds counts. Figures of an emulated machine mean nothing by
//! themselves; their ratio does.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::endpoint::{Medium, NQN, Namespace, PORT};
use crate::fio::{Fio, Report};
use crate::guest::Guest;
use crate::hardware::Hardware;
use crate::image::Image;
use crate::initiator::Initiator;
use crate::{machine, nvmet};

/// One load on one target.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// `nvmet`, `corebay` over the same kind of kernel disk, or `corebay-ram` over its own memory.
    pub target: &'static str,
    /// fio's pattern.
    pub pattern: &'static str,
    /// The queue depth.
    pub depth: u32,
    /// What fio reports: the round with the median of IOPS.
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

/// Three memory disks, and two processes with their DMA buffers.
const MEMORY_MIB: u64 = 2048;
const CONNECT: &str = "-i 2";
/// The host's program and its queue stay on the first of the guest's two cpus, corebay's reactor on
/// the other: a reactor that polls on the host's own cpu would wait for the scheduler with each command.
/// The kernel's target works where its socket was last active.
const HOST: &[&str] = &["--cpus_allowed=0"];
const TARGET_CPU: u32 = 1;

const fn disk(nsid: u32) -> Namespace {
    let medium = Medium::Memory;
    Namespace {
        nsid,
        medium,
        mib: 96,
        block: 4096,
    }
}

/// Measures the kernel's target and the corebay program: `rounds` turns of `seconds` for each load.
pub fn run(image: &Image, corebay: &Path, rounds: u32, seconds: u64) -> Result<Vec<Measurement>> {
    let guest = Guest::boot_with(image, machine::loopback(), Hardware::Host(MEMORY_MIB))?;
    let program = guest.share().join("corebay");
    fs::copy(corebay, program).context("copy corebay into the guest")?;
    let kernel = nvmet::export(&guest, &[disk(1)])?;
    guest.run(&nvmet::disk_script(&disk(2)))?;
    let own = [11, 12].map(|last| Ipv4Addr::new(127, 0, 0, last));
    serve(&guest, &format!("{NQN}.2"), own[0], "/dev/lab2")?;
    serve(&guest, &format!("{NQN}.3"), own[1], "ram:96MiB,block=4096")?;
    let targets = [
        ("nvmet", NQN.to_owned(), kernel.address()),
        ("corebay", format!("{NQN}.2"), own[0]),
        ("corebay-ram", format!("{NQN}.3"), own[1]),
    ];
    let host = Initiator::new(&guest);
    let mut devices = Vec::new();
    for (target, nqn, address) in &targets {
        let controller = host.connect_to(nqn, *address, PORT, CONNECT)?;
        let device = host.device(&controller, 1)?;
        // The first write of a memory disk allocates its pages: that is not to be measured.
        let fill = format!("dd if=/dev/zero of={device} bs=1M count=96 oflag=direct status=none");
        guest.run(&fill).with_context(|| format!("fill {target}"))?;
        devices.push((*target, device));
    }
    let mut all = Vec::new();
    for &(pattern, depth) in LOADS {
        eprintln!("    measuring {pattern} at depth {depth}");
        let mut reports = vec![Vec::new(); devices.len()];
        for _ in 0..rounds {
            for ((target, device), reports) in devices.iter().zip(&mut reports) {
                let report = Fio::speed(device, pattern, depth, seconds)
                    .options(HOST)
                    .run(&guest);
                reports.push(report.with_context(|| {
                    let state = guest.run("free -m; uptime; dmesg | tail");
                    let state = state.unwrap_or_default();
                    format!("{pattern} at {depth} on {target}; the guest:\n{state}\n")
                })?);
            }
        }
        for ((target, _), mut reports) in devices.iter().zip(reports) {
            reports.sort_by(|one, other| one.iops.total_cmp(&other.iops));
            let report = reports[reports.len() / 2];
            all.push(Measurement {
                target,
                pattern,
                depth,
                report,
            });
        }
    }
    Ok(all)
}

/// Starts `/share/corebay` inside the guest with one disk and waits until it serves.
pub fn serve(guest: &Guest, nqn: &str, address: Ipv4Addr, disk: &str) -> Result<()> {
    // A copy on tmpfs: pages of a program must not come over the share while it is measured.
    guest.run(&format!(
        "cp -n /share/corebay /tmp/corebay.program
         setsid /tmp/corebay.program serve --data-dir /tmp/data.{address} --nqn {nqn} \
           --listen {address}:{PORT} --discovery {address}:8009 --cores {TARGET_CPU} --disk '{disk}' \
           > /tmp/corebay.{address} 2>&1 < /dev/null &"
    ))?;
    let ready = format!("grep -q ready /tmp/corebay.{address}");
    let answer = guest.until(&ready, Duration::from_secs(60));
    answer.with_context(|| {
        let said = guest.run(&format!("cat /tmp/corebay.{address}"));
        let said = said.unwrap_or_default();
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
        let same = |m: &&Measurement| m.pattern == pattern && m.depth == depth;
        let load: Vec<_> = all.iter().filter(same).collect();
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
