//! Owns the tests of pools and volumes: made, grown, cloned and deleted while a Linux host is connected to
//! the default appliance, which is killed under its load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fio::{self, Fio};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("first_volume", first_volume),
    Case::new("come_and_go", come_and_go),
    Case::new("grow_under_load", grow_under_load),
    Case::new("clone_of_a_snapshot", clone_of_a_snapshot),
    Case::new("trim_gives_space_back", trim_gives_space_back),
    Case::new("killed_under_load", killed_under_load).io_errors(),
];

/// A host that comes back quickly and does not give up.
const PATIENT: &str = "-i 2 --reconnect-delay=1 --ctrl-loss-tmo=120 --keep-alive-tmo=5";

const SETTLE: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;

/// Makes a volume and exports it; its NSID.
fn make(lab: &mut Lab, name: &str, mib: u64) -> Result<u32> {
    let line = format!("volume create {name} --size {mib}MiB --export");
    let made = lab.corebay()?.ask(&line)?;
    let nsid = made["export"]["nsid"].as_u64().context("an NSID")?;
    Ok(u32::try_from(nsid)?)
}

fn delete(lab: &mut Lab, name: &str) -> Result<()> {
    lab.corebay()?
        .ask(&format!("volume delete {name} --force"))?;
    Ok(())
}

/// The size that the host has for a device is this, soon.
fn has_size(lab: &Lab, device: &str, bytes: u64) -> Result<()> {
    let script = format!("[ \"$(lsblk -bdno SIZE {device})\" = {bytes} ]");
    let reached = lab.guest.until(&script, SETTLE);
    reached.with_context(|| format!("{device} has not {bytes} bytes"))?;
    Ok(())
}

/// What `corebay serve` makes by itself is a disk that works.
fn first_volume(lab: &mut Lab) -> Result<()> {
    let (_, device) = lab.attach(1, "-i 2")?;
    has_size(lab, &device, 8192 * MIB)?;
    Fio::verify(&device).run(&lab.guest)?;
    Ok(())
}

/// A connected host gets and loses a disk by events alone.
fn come_and_go(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("-i 2")?;
    let nsid = make(lab, "comes", 64)?;
    let device = lab.host().device(&controller, nsid)?;
    has_size(lab, &device, 64 * MIB)?;
    let listed = lab.guest.run("nvme list")?;
    ensure!(listed.contains(&device), "no {device} in: {listed}");
    let id = lab.host().json(&format!("id-ns {device}"))?;
    let (nsze, nuse) = (&id["nsze"], &id["nuse"]);
    ensure!(
        *nuse == 0 && id["nsfeat"].as_u64().is_some_and(|bits| bits & 1 == 1),
        "{id}"
    );
    lab.guest.run(&format!(
        "dd if=/dev/urandom of={device} bs=1M count=4 oflag=direct"
    ))?;
    let id = lab.host().json(&format!("id-ns {device}"))?;
    let used = id["nuse"].as_u64().context("NUSE")?;
    ensure!(
        used * 16 == nsze.as_u64().context("NSZE")?,
        "4 of 64 MiB are used: {id}"
    );
    delete(lab, "comes")?;
    lab.guest.until(&format!("[ ! -e {device} ]"), SETTLE)?;
    Ok(())
}

/// A host sees a disk grow while it writes to it, and uses the rest.
fn grow_under_load(lab: &mut Lab) -> Result<()> {
    let nsid = make(lab, "grows", 64)?;
    let (_, device) = lab.attach(nsid, "-i 2")?;
    let load = Fio::verify_for(&device, 12);
    let job = lab.guest.start(&load.script(), load.limit())?;
    let ended = job.ends_within(Duration::from_secs(2))?;
    ensure!(ended.is_none(), "the load ended early");
    lab.corebay()?.ask("volume resize grows 128MiB")?;
    has_size(lab, &device, 128 * MIB)?;
    let output = job.wait()?;
    ensure!(output.status == 0, "fio: {}", output.stderr);
    fio::report(&output.stdout)?;
    Fio::verify(&device)
        .options(&["--offset=96m"])
        .run(&lab.guest)?;
    delete(lab, "grows")
}

/// A clone of a snapshot has the file system as it was, whatever became of the volume.
fn clone_of_a_snapshot(lab: &mut Lab) -> Result<()> {
    let nsid = make(lab, "origin", 128)?;
    let (controller, device) = lab.attach(nsid, "-i 2")?;
    lab.guest.run(&format!(
        "mkfs.ext4 -q -F {device} && mount {device} /mnt && cp /usr/sbin/nvme /mnt/one
         for i in $(seq 50); do echo $i > /mnt/small-$i; done; sync -f /mnt"
    ))?;
    lab.corebay()?.ask("snapshot create origin@before")?;
    lab.guest.run(
        "rm /mnt/one /mnt/small-*; head -c 20000000 /dev/urandom > /mnt/other; sync -f /mnt",
    )?;
    let clone = lab
        .corebay()?
        .ask("volume clone origin@before copy --export")?;
    let nsid = clone["export"]["nsid"].as_u64().context("an NSID")?;
    let copy = lab.host().device(&controller, u32::try_from(nsid)?)?;
    lab.guest.run(&format!(
        "umount /mnt; mount {copy} /mnt || exit
         cmp /usr/sbin/nvme /mnt/one || exit
         for i in $(seq 50); do [ \"$(cat /mnt/small-$i)\" = $i ] || exit; done
         [ ! -e /mnt/other ] || exit
         umount /mnt; fsck.ext4 -f -n {copy} && fsck.ext4 -f -n {device}"
    ))?;
    lab.corebay()?.ask("snapshot delete origin@before")?;
    lab.guest.run(&format!(
        "mount {copy} /mnt && cmp /usr/sbin/nvme /mnt/one && umount /mnt"
    ))?;
    delete(lab, "copy")?;
    delete(lab, "origin")
}

/// What a file system trims is free in the pool.
fn trim_gives_space_back(lab: &mut Lab) -> Result<()> {
    let nsid = make(lab, "trims", 128)?;
    let (_, device) = lab.attach(nsid, "-i 2")?;
    let used = |lab: &mut Lab| -> Result<u64> {
        let shown = lab.corebay()?.ask("volume show trims")?;
        shown["used_bytes"].as_u64().context("used bytes")
    };
    lab.guest.run(&format!(
        "mkfs.ext4 -q -F {device} && mount {device} /mnt || exit
         head -c 40000000 /dev/urandom > /mnt/large; sync -f /mnt"
    ))?;
    let full = used(lab)?;
    lab.guest
        .run("rm /mnt/large; sync -f /mnt; fstrim /mnt; umount /mnt")?;
    let empty = used(lab)?;
    ensure!(
        full > empty + 39_000_000,
        "{full} bytes used before, {empty} after"
    );
    delete(lab, "trims")
}

/// Killed under fio, started again: the load goes on, what it checks is there, and the books are right.
fn killed_under_load(lab: &mut Lab) -> Result<()> {
    let nsid = make(lab, "killed", 128)?;
    let (controller, device) = lab.attach(nsid, PATIENT)?;
    // It outlasts both restarts also where each takes its time.
    let load = Fio::verify_for(&device, 40);
    let job = lab.guest.start(&load.script(), load.limit())?;
    for _ in 0..2 {
        let ended = job.ends_within(Duration::from_secs(5))?;
        ensure!(ended.is_none(), "the load ended early");
        lab.corebay()?.kill();
        lab.corebay()?.launch()?;
        lab.host().wait_live(&controller)?;
    }
    let output = job.wait()?;
    ensure!(output.status == 0, "fio: {}", output.stderr);
    fio::report(&output.stdout)?;
    let report = lab.corebay()?.ask("pool check pool-1")?;
    ensure!(report["good"] == true, "{report}");
    delete(lab, "killed")
}
