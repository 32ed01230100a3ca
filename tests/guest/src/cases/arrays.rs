//! Owns the tests of arrays: members fail and are rebuilt, beneath the load
//! and the file system of a Linux host.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::corebay::ARRAY_DISKS;
use crate::fio::{self, Fio};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("member_fails_under_load", member_fails_under_load),
    Case::new(
        "rebuild_beneath_a_file_system",
        rebuild_beneath_a_file_system,
    ),
];

/// How long a rebuild may take on a busy machine.
const REBUILD_LIMIT: Duration = Duration::from_secs(180);

fn status(lab: &mut Lab) -> Result<Value> {
    lab.corebay()?.ask("array status array-1")
}

/// The array is good, and nothing is under way in it.
fn good(lab: &mut Lab) -> Result<()> {
    let start = Instant::now();
    loop {
        let status = status(lab)?;
        if status["state"] == "good" && status["sweep"].is_null() {
            return Ok(());
        }
        if start.elapsed() > REBUILD_LIMIT {
            bail!("the array does not get good: {status}");
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// The disk that has a role, and one that has none.
fn disks(lab: &mut Lab, role: usize) -> Result<(String, String)> {
    let status = status(lab)?;
    let members = status["members"].as_array().context("members")?;
    let used: Vec<&str> = members.iter().filter_map(|m| m["disk"].as_str()).collect();
    let free = ARRAY_DISKS.iter().map(|disk| format!("{disk}1"));
    let free = free.into_iter().find(|disk| !used.contains(&disk.as_str()));
    let disk = members[role]["disk"].as_str().context("a disk")?;
    Ok((disk.to_owned(), free.context("a free disk")?))
}

/// Gives up the disk of a role, and has another one rebuilt in its place.
fn fail_and_replace(lab: &mut Lab, role: usize) -> Result<()> {
    let (failed, free) = disks(lab, role)?;
    lab.corebay()?
        .ask(&format!("array fail array-1 {failed}"))?;
    ensure!(status(lab)?["state"] == "degraded", "one is missing");
    thread::sleep(Duration::from_secs(1));
    // What it holds is of no use to anybody: it may have been a member before.
    lab.corebay()?.ask(&format!(
        "array replace array-1 {failed} {free} --lose {free}"
    ))?;
    Ok(())
}

/// A host that writes and verifies notices nothing of a member that fails and of its rebuild.
fn member_fails_under_load(lab: &mut Lab) -> Result<()> {
    good(lab)?;
    let (_, device) = lab.attach(1, "-i 2")?;
    let load = Fio::verify_for(&device, 25);
    let job = lab.guest.start(&load.script(), load.limit())?;
    thread::sleep(Duration::from_secs(2));
    fail_and_replace(lab, 1)?;
    let now = status(lab)?;
    ensure!(
        now["state"] == "rebuilding" || now["state"] == "good",
        "{now}"
    );
    let output = job.wait()?;
    ensure!(output.status == 0, "fio: {}", output.said());
    fio::report(&output.stdout)?;
    good(lab)
}

/// Every member is replaced in turn beneath a file system, which is whole in the end.
fn rebuild_beneath_a_file_system(lab: &mut Lab) -> Result<()> {
    good(lab)?;
    let (_, device) = lab.attach(1, "-i 2")?;
    lab.guest.run(&format!(
        "mkfs.ext4 -q -F {device} && mount {device} /mnt || exit
         head -c 30000000 /dev/urandom > /tmp/large; cp /tmp/large /mnt/large
         cp -a /usr/share/fio /mnt/; sync -f /mnt"
    ))?;
    for role in 0..3 {
        fail_and_replace(lab, role)?;
        lab.guest.run(&format!(
            "cp /tmp/large /mnt/large-{role}; sync -f /mnt; echo 3 > /proc/sys/vm/drop_caches
             cmp /tmp/large /mnt/large && cmp /tmp/large /mnt/large-{role}"
        ))?;
        good(lab)?;
    }
    lab.guest.run(&format!(
        "trap 'rm -f /tmp/large' EXIT
         umount /mnt; fsck.ext4 -f -n {device} && mount {device} /mnt || exit
         for f in /mnt/large*; do cmp /tmp/large $f || exit; done
         diff -r /usr/share/fio /mnt/fio && umount /mnt"
    ))?;
    Ok(())
}
