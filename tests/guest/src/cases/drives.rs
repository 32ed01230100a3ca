//! Owns the tests of corebay as the driver of NVMe drives: a machine with an IOMMU, drives taken from
//! the kernel, served over TCP to the machine's own initiator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fio::Fio;
use crate::hardware::{Drive, IN_A_SLOT, NAMESPACE_MIB, PLAIN, TWIN, TWO_NAMESPACES};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("bound_and_given_back", bound_and_given_back),
    Case::new("refused_while_in_use", refused_while_in_use),
    Case::new("every_format_verified", every_format_verified),
];

/// A disk of the configuration: a namespace of a drive.
fn of_drive(drive: &Drive, nsid: u32) -> String {
    format!(
        "nvme = {{ address = \"{}\", nsid = {nsid} }}",
        drive.address
    )
}

/// What `corebay drives` says of a drive.
fn listed(lab: &Lab, drive: &Drive) -> Result<Value> {
    let output = lab.inside()?.command(&lab.guest, "drives -o json list")?;
    let said: Value = serde_json::from_str(&output.success()?)?;
    let all = said["drives"].as_array().context("no list of drives")?;
    let found = all.iter().find(|one| one["address"] == drive.address);
    found
        .cloned()
        .with_context(|| format!("{} is not in {said:#}", drive.address))
}

/// The drive's driver, as the kernel says it.
fn driver(lab: &Lab, drive: &Drive) -> Result<String> {
    let link = format!("/sys/bus/pci/devices/{}/driver", drive.address);
    lab.guest.run(&format!("basename $(readlink {link})"))
}

/// Has a drive driven by corebay.
fn lend(lab: &Lab, drive: &Drive) -> Result<()> {
    if driver(lab, drive)? != "vfio-pci" {
        let bind = format!("drives bind {}", drive.address);
        lab.inside()?.command(&lab.guest, &bind)?.success()?;
    }
    Ok(())
}

/// Has a drive driven by the kernel; gives the block device of a namespace.
fn give_back(lab: &Lab, drive: &Drive, nsid: u32) -> Result<String> {
    if driver(lab, drive)? != "nvme" {
        let unbind = format!("drives unbind {}", drive.address);
        lab.inside()?.command(&lab.guest, &unbind)?.success()?;
    }
    let script = format!(
        "for namespace in /sys/bus/pci/devices/{}/nvme/nvme*/nvme*n*; do
           [ \"$(cat $namespace/nsid)\" = {nsid} ] && [ -b /dev/${{namespace##*/}} ] || continue
           echo /dev/${{namespace##*/}}; exit 0
         done
         exit 1",
        drive.address
    );
    let device = lab.guest.until(&script, Duration::from_secs(20));
    device.with_context(|| format!("the kernel does not see {} {nsid}", drive.serial))
}

/// Fails unless `corebay drives bind` refuses, and says why.
fn refused(lab: &Lab, drive: &Drive, why: &str) -> Result<()> {
    let before = driver(lab, drive)?;
    let bind = format!("drives bind {}", drive.address);
    let output = lab.inside()?.command(&lab.guest, &bind)?;
    ensure!(
        output.status != 0 && output.said().contains(why),
        "instead of a refusal with '{why}': {}",
        output.said()
    );
    let after = driver(lab, drive)?;
    ensure!(before == after, "refused, and yet {before} became {after}");
    Ok(())
}

/// Bound to vfio-pci, listed so, given back to the kernel's driver, which finds its namespaces again.
fn bound_and_given_back(lab: &mut Lab) -> Result<()> {
    for drive in [&PLAIN, &IN_A_SLOT] {
        give_back(lab, drive, 1)?;
        let said = listed(lab, drive)?;
        ensure!(said["serial"] == drive.serial, "the kernel's: {said:#}");
        let bytes = said["namespaces"][0]["bytes"].as_u64();
        ensure!(bytes == Some(NAMESPACE_MIB << 20), "the kernel's: {said:#}");
        ensure!(said["group_mates"] == serde_json::json!([]), "{said:#}");
        lend(lab, drive)?;
        ensure!(driver(lab, drive)? == "vfio-pci");
        refused(lab, drive, "bound to vfio-pci already")?;
        give_back(lab, drive, 1)?;
    }
    Ok(())
}

/// A mounted drive, one that is swapped to, and one that shares its group stay with the kernel.
fn refused_while_in_use(lab: &mut Lab) -> Result<()> {
    let device = give_back(lab, &PLAIN, 1)?;
    lab.guest
        .run(&format!("mkfs.ext4 -q -F {device} && mount {device} /mnt"))?;
    refused(lab, &PLAIN, "is mounted on /mnt")?;
    lab.guest.run("umount /mnt")?;
    lab.guest
        .run(&format!("mkswap -q {device} && swapon {device}"))?;
    refused(lab, &PLAIN, "swap")?;
    lab.guest.run(&format!("swapoff {device}"))?;
    refused(lab, &TWIN, "shares its IOMMU group")?;
    let serve = lab.inside()?.serve(&lab.guest, &[of_drive(&PLAIN, 1)]);
    lab.guest.run("rm -f /tmp/corebay.pid")?;
    let said = format!(
        "{:#}",
        serve.err().context("served a drive of the kernel's")?
    );
    ensure!(said.contains("is not bound to vfio-pci"), "{said}");
    lend(lab, &PLAIN)
}

/// 512 and 4096 bytes, one namespace and two, write cache on and off: fio's own check, a file system,
/// and the write cache told to hosts as it is.
fn every_format_verified(lab: &mut Lab) -> Result<()> {
    let all = [
        (&PLAIN, 1),
        (&TWO_NAMESPACES, 1),
        (&TWO_NAMESPACES, 2),
        (&IN_A_SLOT, 1),
    ];
    for (drive, _) in all {
        lend(lab, drive)?;
    }
    let disks = all.map(|(drive, nsid)| of_drive(drive, nsid));
    lab.inside()?.serve(&lab.guest, &disks)?;
    let controller = lab.connect("-i 1")?;
    for (nsid, (drive, own_nsid)) in (1..).zip(all) {
        let device = lab.host().device(&controller, nsid)?;
        let block = drive.blocks[own_nsid as usize - 1];
        let said = lab.guest.run(&format!(
            "cd /sys/block/$(basename {device})
             cat queue/logical_block_size size"
        ))?;
        let expected = format!("{block}\n{}", (NAMESPACE_MIB << 20) / 512);
        ensure!(
            said == expected,
            "NSID {nsid}: {said} instead of {expected}"
        );
        Fio::verify(&device)
            .run(&lab.guest)
            .with_context(|| format!("NSID {nsid}, drive {}", drive.serial))?;
        lab.guest
            .run(&format!(
                "set -e
                 mkfs.ext4 -q -F {device}; mount {device} /mnt
                 head -c 6000000 /dev/urandom > /tmp/large; cp /tmp/large /mnt/
                 umount /mnt; mount {device} /mnt
                 cmp /tmp/large /mnt/large; umount /mnt; fsck.ext4 -f -n {device}"
            ))
            .with_context(|| format!("NSID {nsid}, drive {}", drive.serial))?;
    }
    Ok(())
}
