//! Owns the tests of what lies above NVMe drives that corebay drives: arrays and pools whose drives go and
//! return, drives that are in use, namespaces that come and go, and the configuration that is documented.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::drives::{
    LOAD_LIMIT, driver, give_back, gone, lend, of_drive, put, put_back, ready_again, refused, same,
    still_runs, tear_out, write_cache,
};
use crate::fio::Fio;
use crate::hardware::{Drive, EUI64, IN_A_SLOT, PLAIN, SECOND_WAY, SHARED, TWO_NAMESPACES};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("served_as_documented", served_as_documented),
    Case::new("in_use_and_refused", in_use_and_refused),
    Case::new("namespaces_come_and_go", namespaces_come_and_go).io_errors(),
    Case::new("member_torn_out_under_load", member_torn_out_under_load),
    Case::new("pool_torn_out_under_load", pool_torn_out_under_load).io_errors(),
];

/// How long an emulated machine may take to bring a drive back, and to do what follows.
const SETTLE: Duration = Duration::from_secs(60);

/// What new users find.
const EXAMPLE: &str = include_str!("../../../../conf/examples/nvme-drives.toml");

fn ask(lab: &Lab, line: &str) -> Result<Value> {
    lab.inside()?.ask(&lab.guest, line)
}

/// Asks again and again until the answer is as wanted.
fn until(lab: &Lab, line: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let start = std::time::Instant::now();
    loop {
        let said = ask(lab, line)?;
        if wanted(&said) {
            return Ok(said);
        }
        ensure!(start.elapsed() < SETTLE, "{line} still says {said:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Makes the ends of a namespace blank, where arrays and pools have their marks; the drive is corebay's
/// then.
fn blank(lab: &Lab, drive: &Drive, nsid: u32) -> Result<()> {
    let device = give_back(lab, drive, nsid)?;
    lab.guest.run(&format!(
        "set -e
         mib=$(($(blockdev --getsize64 {device}) >> 20))
         for at in 0 $((mib - 8)); do
           dd if=/dev/zero of={device} bs=1M count=8 seek=$at oflag=direct status=none
         done"
    ))?;
    lend(lab, drive)
}

/// The example of the documentation, with this machine's drives, cores and host in it, after the commands
/// that stand at its head.
fn served_as_documented(lab: &mut Lab) -> Result<()> {
    put_back(lab)?;
    for drive in [&IN_A_SLOT, &TWO_NAMESPACES] {
        give_back(lab, drive, 1)?;
    }
    let host = lab.guest.run("cat /etc/nvme/hostnqn")?;
    let mut text = EXAMPLE.to_owned();
    for (theirs, ours) in [
        ("0000:01:00.0\" }", format!("{}\" }}", IN_A_SLOT.address)),
        ("S64HNE0R500001", TWO_NAMESPACES.serial.to_owned()),
        ("0025385b71b0a4f9", EUI64.to_owned()),
        ("cores = [2, 3]", "cores = [0, 1]".to_owned()),
        ("memory = \"1GiB\"", "memory = \"128MiB\"".to_owned()),
        (
            "nqn.2014-08.org.nvmexpress:uuid:8c0a1a52-6f3c-4a5e-9f0b-2d6f0f1b7a11",
            host.trim().to_owned(),
        ),
    ] {
        ensure!(
            text.contains(theirs),
            "the example has no {theirs} any more"
        );
        text = text.replace(theirs, &ours);
    }
    let inside = lab.inside()?;
    inside.command(&lab.guest, "doctor")?.success()?;
    let drives = inside.command(&lab.guest, "drives")?.success()?;
    for drive in [&IN_A_SLOT, &TWO_NAMESPACES] {
        ensure!(drives.contains(drive.address), "{drives}");
        let bind = format!("drives bind {}", drive.address);
        inside.command(&lab.guest, &bind)?.success()?;
    }
    inside.serve_file(&lab.guest, &text)?;
    let nqn = "nqn.2024-01.com.example:drives";
    let address = lab.endpoint().address();
    let controller = lab.host().connect_to(nqn, address, 4420, "-i 2")?;
    let blocks = [
        IN_A_SLOT.blocks[0],
        TWO_NAMESPACES.blocks[1],
        TWO_NAMESPACES.blocks[0],
    ];
    for (nsid, block) in (1..).zip(blocks) {
        let device = lab.host().device(&controller, nsid)?;
        let said = lab.guest.run(&format!("blockdev --getss {device}"))?;
        ensure!(
            said == block.to_string(),
            "NSID {nsid} has blocks of {said}"
        );
        Fio::verify(&device)
            .options(&["--size=2m"])
            .run(&lab.guest)?;
    }
    Ok(())
}

/// A drive that is mapped, or that a program has open, stays the kernel's; one that is beneath an array or
/// a pool stays corebay's, unless it is forced.
fn in_use_and_refused(lab: &mut Lab) -> Result<()> {
    blank(lab, &PLAIN, 1)?;
    let device = give_back(lab, &PLAIN, 1)?;
    lab.guest.run(&format!(
        "modprobe dm-mod
         dmsetup create held --noudevsync --table \"0 2048 linear {device} 0\""
    ))?;
    let held = refused(lab, &PLAIN, "is part of dm-");
    lab.guest.run("dmsetup remove --noudevsync held")?;
    held?;
    let pool = "[[pool]]\nname = \"tank\"\ndisk = \"d\"\ncreate = true\n";
    let by_kernel = format!("[[disk]]\nname = \"d\"\ndevice = {{ path = \"{device}\" }}\n{pool}");
    lab.inside()?.serve_with(&lab.guest, &by_kernel)?;
    refused(lab, &PLAIN, "corebay (process ")?;
    lab.inside()?.stop(&lab.guest)?;
    lend(lab, &PLAIN)?;
    let by_us = format!("[[disk]]\nname = \"d\"\n{}\n{pool}", of_drive(&PLAIN, 1));
    lab.inside()?.serve_with(&lab.guest, &by_us)?;
    let unbind = format!("drives unbind {}", PLAIN.address);
    let output = lab.inside()?.command(&lab.guest, &unbind)?;
    let said = output.said();
    ensure!(
        output.status != 0 && said.contains("drives it") && said.contains("--force"),
        "instead of a refusal: {said}"
    );
    ensure!(driver(lab, &PLAIN)? == "vfio-pci");
    let status = ask(lab, "pool status tank")?;
    ensure!(status["state"] == "online", "{status:#}");
    lab.inside()?.stop(&lab.guest)
}

/// Namespaces with metadata beside the data are served, those with metadata within are refused; one that
/// is detached fails its own I/O, and is there again once it is attached.
fn namespaces_come_and_go(lab: &mut Lab) -> Result<()> {
    lend(lab, &SHARED)?;
    let serve = lab.inside()?.serve(&lab.guest, &[of_drive(&SHARED, 3)]);
    lab.guest.run("rm -f /tmp/corebay.pid")?;
    let said = format!(
        "{:#}",
        serve.err().context("served metadata within blocks")?
    );
    ensure!(
        said.contains("8 bytes of metadata per block, within the block"),
        "{said}"
    );
    let disks = [1, 2].map(|nsid| of_drive(&SHARED, nsid));
    lab.inside()?.serve(&lab.guest, &disks)?;
    let controller = lab.connect("-i 1")?;
    let comes_and_goes = lab.host().device(&controller, 1)?;
    let stays = lab.host().device(&controller, 2)?;
    put(lab, &comes_and_goes, "/tmp/kept")?;
    let load = Fio::verify_for(&stays, 15);
    let load = lab.guest.start(&load.script(), load.limit())?;
    let of_the_kernel = lab.guest.until(
        &format!(
            "basename /sys/bus/pci/devices/{}/nvme/nvme*",
            SECOND_WAY.address
        ),
        SETTLE,
    )?;
    let by_the_kernel = |what: &str| {
        lab.guest
            .run(&format!("nvme {what}-ns /dev/{of_the_kernel} -n 1 -c 0"))
    };
    by_the_kernel("detach")?;
    let fails =
        format!("! dd if={comes_and_goes} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null");
    let failed = lab.guest.until(&fails, SETTLE);
    failed.context("what was detached is still read")?;
    by_the_kernel("attach")?;
    ready_again(lab, &comes_and_goes)?;
    same(lab, &comes_and_goes, "/tmp/kept")?;
    load.wait()?
        .success()
        .context("the namespace that stayed")?;
    Ok(())
}

/// A mirror over two drives: without one of them its load goes on, and once that is there again it is
/// brought up to date, by itself.
fn member_torn_out_under_load(lab: &mut Lab) -> Result<()> {
    put_back(lab)?;
    blank(lab, &IN_A_SLOT, 1)?;
    blank(lab, &TWO_NAMESPACES, 2)?;
    let text = format!(
        "[[subsystem.namespace]]\nnsid = 1\ndisk = \"mirror\"
         [[disk]]\nname = \"goes\"\n{}
         [[disk]]\nname = \"stays\"\n{}
         [[array]]\nname = \"mirror\"\nlevel = \"raid1\"\nmembers = [\"goes\", \"stays\"]
         create = true\n",
        of_drive(&IN_A_SLOT, 1),
        of_drive(&TWO_NAMESPACES, 2)
    );
    lab.inside()?.serve_with(&lab.guest, &text)?;
    let good = |said: &Value| said["state"] == "good" && said["sweep"].is_null();
    until(lab, "array status mirror", good)?;
    let (_, device) = lab.attach(1, "-i 1")?;
    put(lab, &device, "/tmp/kept")?;
    let load = Fio::verify_for(&device, 45).options(&["--offset=16m"]);
    let load = lab.guest.start(&load.script(), load.limit())?;
    still_runs(&load, 3)?;
    tear_out(lab)?;
    let degraded = |said: &Value| said["state"] == "degraded";
    until(lab, "array status mirror", degraded).context("without the drive")?;
    gone(lab)?;
    put_back(lab)?;
    until(lab, "array status mirror", good).context("with the drive again")?;
    load.wait()?.success().context("the load on the mirror")?;
    let said = lab.inside()?.output(&lab.guest);
    ensure!(
        said.contains("what it missed is brought up to date") && !said.contains("rebuilt whole"),
        "more than what it missed: {said}"
    );
    same(lab, &device, "/tmp/kept")?;
    ask(lab, "array scrub mirror")?;
    let scrubbed = |said: &Value| !said["scrubbed"].is_null();
    let status = until(lab, "array status mirror", scrubbed)?;
    ensure!(status["scrubbed"]["mismatches"] == 0, "{status:#}");
    Ok(())
}

/// A pool on one drive fails with it, says so, and is opened again by itself once it is there again: the
/// host finds its volume with all that it held.
fn pool_torn_out_under_load(lab: &mut Lab) -> Result<()> {
    put_back(lab)?;
    blank(lab, &IN_A_SLOT, 1)?;
    let text = format!(
        "[[disk]]\nname = \"slot\"\n{}
         [[pool]]\nname = \"tank\"\ndisk = \"slot\"\ncreate = true\n",
        of_drive(&IN_A_SLOT, 1)
    );
    lab.inside()?.serve_with(&lab.guest, &text)?;
    let made = ask(lab, "volume create tank/one --size 64MiB --export")?;
    let nsid = made["export"]["nsid"].as_u64().context("an NSID")?;
    let (_, device) = lab.attach(u32::try_from(nsid)?, "-i 1")?;
    // The drive's cache is off, which its own driver in the kernel does not ask.
    let cache = write_cache(lab, &device)?;
    ensure!(cache == "write through", "its volume is {cache}");
    put(lab, &device, "/tmp/kept")?;
    ask(lab, "snapshot create tank/one@before")?;
    let load = Fio::verify_for(&device, 60).options(&["--offset=16m"]);
    let load = lab.guest.start(&load.script(), load.limit())?;
    still_runs(&load, 3)?;
    tear_out(lab)?;
    let ended = load.ends_within(LOAD_LIMIT)?;
    let ended = ended.context("the load on the missing drive neither fails nor ends")?;
    ensure!(ended.status != 0, "the load outlived its drive");
    let failed = |said: &Value| said["state"] == "failed" && said["problem"].is_string();
    until(lab, "pool status tank", failed).context("without its drive")?;
    gone(lab)?;
    put_back(lab)?;
    let online = |said: &Value| said["state"] == "online";
    until(lab, "pool status tank", online).context("with its drive again")?;
    ready_again(lab, &device)?;
    same(lab, &device, "/tmp/kept").context("after the drive's return")?;
    Fio::verify(&device)
        .options(&["--offset=16m", "--size=4m"])
        .run(&lab.guest)
        .context("after the drive's return")?;
    ask(lab, "snapshot create tank/one@after")?;
    let checked = ask(lab, "pool check tank")?;
    ensure!(checked["problems"] == serde_json::json!([]), "{checked:#}");
    lab.guest.run("nvme disconnect-all")?;
    lab.inside()?.stop(&lab.guest)
}
