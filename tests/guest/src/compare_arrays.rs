//! Owns the comparison of corebay's arrays with Linux md: same guest, same initiator, same drives.
//!
//! The drives are the kernel's memory disks. Each array in its turn has them all, zeroed, and is served
//! on the guest's own loopback: md's by the kernel's target, ours by corebay over the drives' block
//! devices. md is set up by device mapper, whose `raid` target runs md's own `raid456`; its bitmap
//! lies on drives of its own, our record of dirty regions on the members. The median of the rounds counts.
//! Figures of an emulated machine mean nothing by themselves; their ratio does.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::endpoint::{NQN, PORT};
use crate::fio::{Fio, Report};
use crate::guest::Guest;
use crate::hardware::Hardware;
use crate::image::Image;
use crate::initiator::Initiator;
use crate::machine;

/// The queue depths of random writes of 4 KiB.
const DEPTHS: [u32; 3] = [1, 32, 128];
const DATA_MEMBERS: u32 = 4;
const MEMBER_MIB: u32 = 64;
/// Members first, then what holds each one's bitmap.
const MEMBERS_MAX: u32 = 6;
const DRIVES: u32 = 2 * MEMBERS_MAX;
/// The drives, a page cache for them, and a process with its DMA buffers.
const MEMORY_MIB: u64 = 2048;
const SETTLE: Duration = Duration::from_secs(60);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 21);
/// As in the comparison of the targets: the host's program has the other processor.
const HOST: &[&str] = &["--cpus_allowed=0"];
const TARGET_CPU: u32 = 1;

/// One array, as both make it.
#[derive(Clone, Copy)]
struct Array {
    name: &'static str,
    members: u32,
    level: &'static str,
    consistency: &'static str,
    md_type: &'static str,
    /// The parameters after the strip, and how many.
    md_parameters: (u32, &'static str),
}

/// Both record dirty regions. A journal is left out: md's stalled at depth 128.
const ARRAYS: [Array; 2] = [
    Array {
        name: "RAID 5, 4+1, dirty regions",
        members: 5,
        level: "raid5",
        consistency: "resync",
        md_type: "raid5_ls",
        md_parameters: (1, "nosync"),
    },
    Array {
        name: "RAID 6, 4+2, dirty regions",
        members: 6,
        level: "raid6",
        consistency: "resync",
        md_type: "raid6_zr",
        md_parameters: (0, ""),
    },
];

/// Measures md and corebay: `rounds` turns of `seconds` for each load; prints a table,
/// each array's lines as soon as they are known.
pub fn run(image: &Image, corebay: &Path, rounds: u32, seconds: u64) -> Result<()> {
    let guest = Guest::boot_with(image, machine::loopback(), Hardware::Host(MEMORY_MIB))?;
    fs::copy(corebay, guest.share().join("corebay")).context("copy corebay into the guest")?;
    let (drives, kib) = (DRIVES, MEMBER_MIB << 10);
    guest.run(&format!(
        "set -e
         cp /share/corebay /tmp/corebay
         modprobe brd rd_nr={drives} rd_size={kib}
         modprobe -a dm-raid raid456 nvmet nvmet_tcp"
    ))?;
    println!("| array | depth | md IOPS | corebay IOPS | ratio | md mean us | corebay mean us |");
    println!("| ----- | ----: | ------: | -----------: | ----: | ---------: | --------------: |");
    for array in ARRAYS {
        eprintln!("    measuring {}", array.name);
        let mut md = vec![Vec::new(); DEPTHS.len()];
        let mut ours = vec![Vec::new(); DEPTHS.len()];
        for _ in 0..rounds {
            zero_drives(&guest)?;
            start_md(&guest, array).context("md")?;
            load(&guest, seconds, &mut md).context("load on md")?;
            stop_md(&guest)?;
            zero_drives(&guest)?;
            start_corebay(&guest, array)?;
            load(&guest, seconds, &mut ours).context("load on corebay")?;
            stop_corebay(&guest)?;
        }
        for ((depth, md), ours) in DEPTHS.into_iter().zip(md).zip(ours) {
            let (md, ours) = (median(md), median(ours));
            println!(
                "| {} | {depth} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} |",
                array.name,
                md.iops,
                ours.iops,
                ours.iops / md.iops,
                md.latency_us_mean,
                ours.latency_us_mean,
            );
        }
    }
    Ok(())
}

/// Nothing is left of an earlier array, parity fits, and no page has yet to be allocated.
fn zero_drives(guest: &Guest) -> Result<()> {
    guest.run(&format!(
        "for drive in $(seq 0 {}); do
           dd if=/dev/zero of=/dev/ram$drive bs=1M count={MEMBER_MIB} oflag=direct status=none || exit
         done",
        DRIVES - 1
    ))?;
    Ok(())
}

fn start_md(guest: &Guest, array: Array) -> Result<()> {
    let members = array.members;
    let sectors = u64::from(DATA_MEMBERS * MEMBER_MIB) << 11;
    let (count, parameters) = array.md_parameters;
    let count = count + 1;
    let pair = "/dev/ram$((member + 6)) /dev/ram$member";
    let kind = array.md_type;
    guest.run(&format!(
        "pairs=; for member in $(seq 0 {}); do pairs=\"$pairs {pair}\"; done
         dmsetup create md --noudevsync --table \
           \"0 {sectors} raid {kind} {count} 128 {parameters} {members} $pairs\" ||
           {{ dmesg | tail; exit 1; }}",
        members - 1
    ))?;
    // RAID 6 insists on a first synchronisation.
    guest.until(
        "dmsetup status md | tee /dev/stderr | grep -q ' idle '",
        SETTLE,
    )?;
    guest.run(&format!(
        "set -e
         device=/dev/dm-$(dmsetup info -c --noheadings -o minor md)
         cd /sys/kernel/config/nvmet
         mkdir subsystems/{NQN} ports/1 subsystems/{NQN}/namespaces/1
         echo 1 > subsystems/{NQN}/attr_allow_any_host
         echo $device > subsystems/{NQN}/namespaces/1/device_path
         echo 1 > subsystems/{NQN}/namespaces/1/enable
         echo tcp > ports/1/addr_trtype; echo ipv4 > ports/1/addr_adrfam
         echo {ADDRESS} > ports/1/addr_traddr; echo {PORT} > ports/1/addr_trsvcid
         ln -s $PWD/subsystems/{NQN} ports/1/subsystems/{NQN}"
    ))?;
    Ok(())
}

fn stop_md(guest: &Guest) -> Result<()> {
    guest.run(&format!(
        "set -e
         cd /sys/kernel/config/nvmet
         rm ports/1/subsystems/*
         rmdir ports/1 subsystems/{NQN}/namespaces/1 subsystems/{NQN}
         dmsetup remove --noudevsync --retry md"
    ))?;
    Ok(())
}

fn start_corebay(guest: &Guest, array: Array) -> Result<()> {
    let Array {
        members,
        level,
        consistency,
        ..
    } = array;
    let names: Vec<String> = (0..members).map(|member| format!("m{member}")).collect();
    let mut text = format!(
        "data_dir = \"/tmp/data\"\n[reactor]\ncores = [{TARGET_CPU}]\nmemory = \"256MiB\"\n\
         [[listener]]\naddress = \"{ADDRESS}:{PORT}\"\n\
         [[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\ndisk = \"array\"\n\
         [[array]]\nname = \"array\"\nlevel = \"{level}\"\nmembers = {names:?}\n\
         strip = \"64KiB\"\nconsistency = \"{consistency}\"\ncreate = true\n"
    );
    for (member, name) in names.iter().enumerate() {
        text += &format!(
            "[[disk]]\nname = \"{name}\"\ndevice = {{ path = \"/dev/ram{member}\" }}\n\
             block_size = 4096\n"
        );
    }
    fs::write(guest.share().join("corebay.toml"), text)?;
    guest.run(
        "ulimit -l unlimited
         rm -rf /tmp/data
         setsid /tmp/corebay serve --config /share/corebay.toml \
           > /tmp/corebay.log 2>&1 < /dev/null & echo $! > /tmp/corebay.pid",
    )?;
    let ready = "grep -q ready /tmp/corebay.log &&
                 /tmp/corebay array status array --control /tmp/data/corebay.sock -o json |
                   jq -e '.state == \"good\" and .sweep == null'";
    guest.until(ready, SETTLE).with_context(|| {
        let said = guest.run("cat /tmp/corebay.log").unwrap_or_default();
        format!("corebay in the guest is not ready: {said}")
    })?;
    Ok(())
}

fn stop_corebay(guest: &Guest) -> Result<()> {
    guest.run(
        "read -r pid < /tmp/corebay.pid; kill $pid
         for i in $(seq 300); do [ -e /proc/$pid ] || exit 0; sleep 0.1; done
         exit 1",
    )?;
    Ok(())
}

/// Every depth once on the array that is served now.
fn load(guest: &Guest, seconds: u64, reports: &mut [Vec<Report>]) -> Result<()> {
    let host = Initiator::new(guest);
    let controller = host.connect(ADDRESS, PORT, "-i 2")?;
    let device = host.device(&controller, 1)?;
    for (depth, reports) in DEPTHS.into_iter().zip(reports) {
        let fio = Fio::speed(&device, "randwrite", depth, seconds).options(HOST);
        reports.push(fio.run(guest)?);
    }
    host.disconnect_all()
}

/// The round with the median of IOPS.
fn median(mut reports: Vec<Report>) -> Report {
    reports.sort_by(|one, other| one.iops.total_cmp(&other.iops));
    reports[reports.len() / 2]
}
