//! Owns the tests of data under load: fio with CRC32C verification, over queues, digests and formats.

use anyhow::{Result, ensure};

use crate::fio::Fio;
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("no_digests", |lab| verify(lab, 1, "-i 2")).peer(),
    Case::new("header_digest", |lab| verify(lab, 1, "-i 2 --hdr-digest")).peer(),
    Case::new("data_digest", |lab| verify(lab, 1, "-i 2 --data-digest")).peer(),
    Case::new("both_digests", |lab| {
        verify(lab, 1, "-i 2 --hdr-digest --data-digest")
    })
    .peer(),
    Case::new("four_queues_4096", |lab| verify(lab, 2, "-i 2 -W 2")).peer(),
    Case::new("four_queues_both_digests_4096", |lab| {
        verify(lab, 2, "-i 2 -W 2 --hdr-digest --data-digest")
    })
    .peer(),
    Case::new("mixed_sizes", mixed_sizes).peer(),
    Case::new("beyond_the_queue_depth", beyond_the_queue_depth).peer(),
    Case::new("many_namespaces_at_once", many_namespaces_at_once).peer(),
    Case::new("trim_under_load", trim_under_load).peer(),
    Case::new("resets_under_load", resets_under_load).peer(),
];

fn verify(lab: &mut Lab, nsid: u32, options: &str) -> Result<()> {
    let (_, device) = lab.attach(nsid, options)?;
    let report = Fio::verify(&device).run(&lab.guest)?;
    // Two threads of 12 MiB: each block is read or written by the mix, and what was written is read
    // back.
    ensure!(
        report.reads >= 5_000 && report.writes >= 2_500,
        "too little was done: {report:?}"
    );
    Ok(())
}

/// 512 bytes to 256 KiB, unaligned to anything but the block: in a capsule, by R2T, split by MDTS.
fn mixed_sizes(lab: &mut Lab) -> Result<()> {
    let (_, device) = lab.attach(1, "-i 2 --data-digest")?;
    let sizes = "--rw=randwrite --size=40m --offset_increment=48m --verify_interval=512";
    let split = "--bssplit=512/10:4k/30:5632/10:8k/10:16896/10:64k/20:256k/10 --bs_unaligned=1";
    Fio::verify(&device)
        .options(&[sizes, split])
        .run(&lab.guest)?;
    Ok(())
}

/// More I/O in flight than the target's queues take: back-pressure, and nothing lost.
fn beyond_the_queue_depth(lab: &mut Lab) -> Result<()> {
    let (_, device) = lab.attach(1, "-i 2 -Q 16")?;
    Fio::verify(&device).depth(256).run(&lab.guest)?;
    Ok(())
}

fn many_namespaces_at_once(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("-i 2 --hdr-digest")?;
    let mut jobs = Vec::new();
    for namespace in lab.endpoint().namespaces.clone() {
        let device = lab.host().device(&controller, namespace.nsid)?;
        let fio = Fio::verify(&device);
        jobs.push(lab.guest.start(&fio.script(), fio.limit())?);
    }
    for job in jobs {
        crate::fio::report(&job.wait()?.success()?)?;
    }
    Ok(())
}

/// Trims beside writes and reads on the same device never touch what they do not name.
fn trim_under_load(lab: &mut Lab) -> Result<()> {
    let (_, device) = lab.attach(1, "-i 2")?;
    let trims =
        "for i in $(seq 60); do blkdiscard -o $((67108864 + i * 1048576)) -l 524288 $D; done";
    let load = Fio::verify(&device);
    let job = lab.guest.start(&load.script(), load.limit())?;
    lab.device_script(&device, 1, trims)?;
    crate::fio::report(&job.wait()?.success()?)?;
    Ok(())
}

/// Commands that a reset caught are sent again by the host: no error and no wrong block.
fn resets_under_load(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, "-i 2")?;
    let load = Fio::verify_for(&device, 12);
    let job = lab.guest.start(&load.script(), load.limit())?;
    for _ in 0..4 {
        lab.guest.run("sleep 2")?;
        lab.guest
            .run(&format!("nvme reset /dev/{}", controller.name))?;
        lab.host().wait_live(&controller)?;
    }
    let report = crate::fio::report(&job.wait()?.success()?)?;
    ensure!(report.reads > 1_000, "too little was done: {report:?}");
    Ok(())
}
