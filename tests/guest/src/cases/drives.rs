//! Owns the tests of corebay as the driver of NVMe drives: a machine with an IOMMU, drives taken from
//! the kernel, served over TCP to the machine's own initiator.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::agent::Job;
use crate::fio::Fio;
use crate::hardware::{Drive, IN_A_SLOT, NAMESPACE_MIB, PLAIN, SLOT_PORT, TWIN, TWO_NAMESPACES};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("doctor_and_its_remedy", doctor_and_its_remedy),
    Case::new("bound_and_given_back", bound_and_given_back),
    Case::new("refused_while_in_use", refused_while_in_use),
    Case::new("health_and_firmware_shown", health_and_firmware_shown),
    Case::new("every_format_verified", every_format_verified),
    Case::new("same_data_as_the_kernels", same_data_as_the_kernels),
    Case::new("no_system_call_for_the_drive", no_system_call_for_the_drive),
    Case::new("no_system_call_per_io", no_system_call_per_io),
    Case::new("taken_out_and_put_back", taken_out_and_put_back).io_errors(),
    Case::new("torn_out_under_load", torn_out_under_load).io_errors(),
    Case::new("bound_again_while_served", bound_again_while_served).io_errors(),
    Case::new("the_end_without_a_drive", the_end_without_a_drive).io_errors(),
];

/// How long a load may take to end that fails. fio takes seconds for that where processors are scarce.
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// A disk of the configuration: a namespace of a drive.
pub(super) fn of_drive(drive: &Drive, nsid: u32) -> String {
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
pub(super) fn driver(lab: &Lab, drive: &Drive) -> Result<String> {
    let link = format!("/sys/bus/pci/devices/{}/driver", drive.address);
    lab.guest.run(&format!("basename $(readlink {link})"))
}

/// Has a drive driven by corebay.
pub(super) fn lend(lab: &Lab, drive: &Drive) -> Result<()> {
    if driver(lab, drive)? != "vfio-pci" {
        let bind = format!("drives bind {}", drive.address);
        lab.inside()?.command(&lab.guest, &bind)?.success()?;
    }
    Ok(())
}

/// Has a drive driven by the kernel; gives the block device of a namespace.
pub(super) fn give_back(lab: &Lab, drive: &Drive, nsid: u32) -> Result<String> {
    if driver(lab, drive)? != "nvme" {
        let unbind = format!("drives unbind --force {}", drive.address);
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
pub(super) fn refused(lab: &Lab, drive: &Drive, why: &str) -> Result<()> {
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

/// What `corebay doctor` finds of this: how good it is, and the remedy; and its exit status.
fn found(lab: &Lab, what: &str) -> Result<(String, String, i32)> {
    let output = lab.inside()?.command(&lab.guest, "doctor -o json")?;
    let said: Value = serde_json::from_str(&output.stdout).context("what the doctor says")?;
    let all = said["findings"].as_array().context("no findings")?;
    let found = all.iter().find(|one| one["what"] == what);
    let found = found.with_context(|| format!("no {what} in {said:#}"))?;
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    Ok((text("grade"), text("mend"), output.status))
}

/// A machine that has all is fit; what is taken from it is missed, and the command that is named mends
/// it.
fn doctor_and_its_remedy(lab: &mut Lab) -> Result<()> {
    for what in ["IOMMU", "VFIO", "hugepages"] {
        let (grade, _, status) = found(lab, what)?;
        ensure!(
            grade == "good" && status == 0,
            "{what} is {grade}, status {status}"
        );
    }
    lab.guest.run("modprobe -r vfio-pci")?;
    let (grade, mend, status) = found(lab, "VFIO")?;
    ensure!(
        grade == "missing" && status == 1,
        "without vfio-pci, VFIO is {grade}, status {status}"
    );
    lab.guest
        .run(&format!("mkdir -p /etc/modules-load.d; {mend}"))
        .context("the remedy")?;
    let (grade, _, status) = found(lab, "VFIO")?;
    ensure!(
        grade == "good" && status == 0,
        "after its remedy, VFIO is {grade}, status {status}"
    );
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
        let lent = listed(lab, drive)?;
        for known in ["model", "serial", "bytes"] {
            ensure!(
                lent[known] == said[known],
                "it was {said:#}, lent it is {lent:#}"
            );
        }
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
    // Where this process does not see it, as a container's.
    lab.guest.run(&format!(
        "unshare --mount sh -c 'mount {device} /mnt && touch /tmp/hidden && exec sleep 600' \
             </dev/null >/dev/null 2>&1 &
         echo $! > /tmp/hidden.pid
         until [ -e /tmp/hidden ]; do sleep 0.1; done"
    ))?;
    refused(lab, &PLAIN, "is held by the kernel or a program")?;
    lab.guest.run("kill $(cat /tmp/hidden.pid)")?;
    lab.guest.until(
        &format!("mkswap -q {device} && swapon {device}"),
        Duration::from_secs(20),
    )?;
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

/// The kernel's, lent to nobody, or served: a drive says how it is, each time the same.
fn health_and_firmware_shown(lab: &mut Lab) -> Result<()> {
    let show = |of: &str| -> Result<Value> {
        let command = format!("drives {of} -o json show {}", PLAIN.address);
        let output = lab.inside()?.command(&lab.guest, &command)?;
        let said: Value = serde_json::from_str(&output.success()?)?;
        ensure!(said["serial"] == PLAIN.serial, "{said:#}");
        let health = &said["health"];
        let celsius = health["celsius"].as_i64();
        ensure!(celsius.is_some_and(|at| (1..100).contains(&at)), "{said:#}");
        ensure!(health["media_errors"] == 0, "{said:#}");
        let slots = said["firmware_slots"].as_array();
        let runs = slots.and_then(|slots| slots.iter().find(|slot| slot["active"] == true));
        ensure!(
            runs.is_some_and(|slot| slot["revision"].is_string()),
            "{said:#}"
        );
        Ok(said)
    };
    give_back(lab, &PLAIN, 1)?;
    let kernels = show("")?;
    lend(lab, &PLAIN)?;
    let lent = show("")?;
    let device = attach(lab, of_drive(&PLAIN, 1))?;
    put(lab, &device, "/tmp/one")?;
    let served = show("--control /tmp/data/corebay.sock")?;
    ensure!(served["resets"] == 0, "{served:#}");
    let constant = |said: &Value| {
        let health = &said["health"];
        ["celsius", "celsius_warning", "spare_percent"].map(|name| health[name].clone())
    };
    ensure!(
        constant(&kernels) == constant(&lent),
        "{kernels:#}, {lent:#}"
    );
    ensure!(constant(&lent) == constant(&served), "{lent:#}, {served:#}");
    let command = format!(
        "drives --control /tmp/data/corebay.sock show {}",
        PLAIN.address
    );
    let output = lab.inside()?.command(&lab.guest, &command)?;
    let text = output.success()?;
    ensure!(
        text.contains("temperature") && text.contains(PLAIN.serial),
        "{text}"
    );
    detach(lab)
}

/// 512 and 4096 bytes, one namespace and two, write cache on and off: fio's own check, and a file system.
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
            .options(&["--size=4m"])
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

/// Fails unless the head of a device is a file's content.
pub(super) fn same(lab: &Lab, device: &str, file: &str) -> Result<()> {
    let script = format!(
        "dd if={device} bs=1M count=8 iflag=direct status=none | cmp - {file} && echo same"
    );
    let said = lab.guest.run(&script)?;
    ensure!(said == "same", "{device} does not hold {file}");
    Ok(())
}

/// Fills a file at random, and writes it to the head of a device.
pub(super) fn put(lab: &Lab, device: &str, file: &str) -> Result<()> {
    let script = format!(
        "head -c 8M /dev/urandom > {file}
         dd if={file} of={device} bs=1M oflag=direct conv=notrunc,fsync status=none"
    );
    lab.guest.run(&script)?;
    Ok(())
}

/// Serves one disk as namespace 1, and gives its block device at the host.
fn attach(lab: &Lab, disk: String) -> Result<String> {
    lab.inside()?.serve(&lab.guest, &[disk])?;
    Ok(lab.attach(1, "-i 1")?.1)
}

pub(super) fn detach(lab: &Lab) -> Result<()> {
    lab.guest.run("nvme disconnect-all")?;
    lab.inside()?.stop(&lab.guest)
}

/// Whether the kernel takes a device to have a volatile write cache.
pub(super) fn write_cache(lab: &Lab, device: &str) -> Result<String> {
    let script = format!("cat /sys/block/$(basename {device})/queue/write_cache");
    Ok(lab.guest.run(&script)?.trim().to_owned())
}

/// What corebay's own driver, the io_uring disk over the kernel's driver and the kernel itself wrote,
/// each of the others reads.
fn same_data_as_the_kernels(lab: &mut Lab) -> Result<()> {
    let kernels = give_back(lab, &PLAIN, 1)?;
    let by_uring = || format!("device = {{ path = \"{kernels}\" }}");
    put(lab, &kernels, "/tmp/one")?;
    let cache = write_cache(lab, &kernels)?;
    let device = attach(lab, by_uring())?;
    same(lab, &device, "/tmp/one").context("io_uring after the kernel")?;
    put(lab, &device, "/tmp/two")?;
    detach(lab)?;
    same(lab, &kernels, "/tmp/two").context("the kernel after io_uring")?;
    lend(lab, &PLAIN)?;
    let device = attach(lab, format!("nvme = {{ serial = \"{}\" }}", PLAIN.serial))?;
    same(lab, &device, "/tmp/two").context("our driver after io_uring")?;
    let ours = write_cache(lab, &device)?;
    ensure!(
        (&*cache, &*ours) == ("write back", "write back"),
        "the drive is {cache} to the kernel, {ours} as it is served"
    );
    put(lab, &device, "/tmp/three")?;
    detach(lab)?;
    let kernels = give_back(lab, &PLAIN, 1)?;
    same(lab, &kernels, "/tmp/three").context("the kernel after our driver")?;
    let device = attach(lab, by_uring())?;
    same(lab, &device, "/tmp/three").context("io_uring after our driver")?;
    detach(lab)
}

/// Under load the core that drives the drive calls the kernel for its sockets, now and then for memory, and
/// for nothing else.
fn no_system_call_for_the_drive(lab: &mut Lab) -> Result<()> {
    lend(lab, &PLAIN)?;
    let device = attach(lab, of_drive(&PLAIN, 1))?;
    let load = Fio::verify_for(&device, 10);
    let job = lab.guest.start(&load.script(), load.limit())?;
    still_runs(&job, 2)?;
    let counted = lab.guest.run(
        "set -e
         mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true
         cd /sys/kernel/tracing; event=events/raw_syscalls/sys_enter
         for task in /proc/$(cat /tmp/corebay.pid)/task/*; do
           case $(cat $task/comm) in corebay-0) thread=${task##*/} ;; esac
         done
         [ -n \"$thread\" ] || { cat /proc/$(cat /tmp/corebay.pid)/task/*/comm; exit 1; }
         echo \"hist:keys=id if common_pid==$thread\" > $event/trigger
         sleep 4
         cat $event/hist
         echo \"!hist:keys=id if common_pid==$thread\" > $event/trigger",
    )?;
    job.wait()?.success()?;
    let calls = calls(&counted, "id");
    let all: u64 = calls.iter().map(|(_, count)| count).sum();
    ensure!(all > 100, "the load made {all} system calls: {counted}");
    for (number, count) in calls {
        ensure!(
            OF_SOCKETS.contains(&number)
                || OF_MEMORY.contains(&number) && count <= MEMORY_CALLS_MAX,
            "system call {number} was made {count} times under load: {counted}"
        );
    }
    Ok(())
}

/// The driver alone, with no sockets beside it, calls the kernel for next to nothing, however many I/Os
/// it does.
fn no_system_call_per_io(lab: &mut Lab) -> Result<()> {
    const SECONDS: f64 = 4.0;
    lend(lab, &PLAIN)?;
    let script = format!(
        "ulimit -l unlimited; echo $$ > /tmp/bench.pid
         exec /tmp/corebay drives -o json bench {} --depth 32 --time 15s",
        PLAIN.address
    );
    let job = lab.guest.start(&script, Duration::from_secs(90))?;
    still_runs(&job, 4)?;
    let counted = lab.guest.run(&format!(
        "set -e
         mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true
         cd /sys/kernel/tracing; event=events/raw_syscalls/sys_enter
         echo own: $(cat /tmp/bench.pid)
         echo hist:keys=common_pid > $event/trigger
         sleep {SECONDS}
         cat $event/hist
         echo '!hist:keys=common_pid' > $event/trigger"
    ))?;
    let said: Value = serde_json::from_str(&job.wait()?.success()?)?;
    let iops = said["iops"].as_f64().context("no iops")?;
    let own = counted.lines().find_map(|line| line.strip_prefix("own: "));
    let own: u64 = own.context("the bench does not run")?.trim().parse()?;
    let calls = calls(&counted, "common_pid");
    // The script's own are counted too: the counter works.
    ensure!(
        calls.iter().any(|(process, _)| *process != own),
        "{counted}"
    );
    let of_the_bench = calls.iter().find(|(process, _)| *process == own);
    let count = of_the_bench.map_or(0, |(_, count)| *count);
    ensure!(
        iops > 100.0 && (count as f64) < iops * SECONDS / 100.0,
        "{count} system calls in {SECONDS} s at {iops} I/Os a second"
    );
    Ok(())
}

/// read, write, poll, readv, writev, sendto, recvfrom, sendmsg, recvmsg, epoll_wait, ppoll, epoll_pwait:
/// what sockets, and a thread that looks whether there is something to do, are served with.
const OF_SOCKETS: [u64; 12] = [0, 1, 7, 19, 20, 44, 45, 46, 47, 232, 271, 281];

/// mmap, mprotect, munmap, brk: the heap that grows once for a load that it has not seen before.
const OF_MEMORY: [u64; 4] = [9, 10, 11, 12];
const MEMORY_CALLS_MAX: u64 = 8;

/// The lines `{ id: 46 } hitcount: 123` of the kernel's histogram, for this key.
fn calls(text: &str, key: &str) -> Vec<(u64, u64)> {
    let begin = format!("{{ {key}:");
    let number = |text: &str| text.trim().parse().ok();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(&begin)?.split_once("} hitcount:"))
        .filter_map(|(id, count)| Some((number(id)?, number(count)?)))
        .collect()
}

pub(super) fn still_runs(job: &Job, seconds: u64) -> Result<()> {
    let ended = job.ends_within(Duration::from_secs(seconds))?;
    let said = ended.map(|output| output.said());
    ensure!(said.is_none(), "the load ended early: {said:?}");
    Ok(())
}

/// Serves a drive that stays, and the one in the slot; gives their block devices at the host.
fn serve_both(lab: &Lab) -> Result<[String; 2]> {
    let both = [&PLAIN, &IN_A_SLOT];
    put_back(lab)?;
    for drive in both {
        lend(lab, drive)?;
    }
    let disks = both.map(|drive| of_drive(drive, 1));
    lab.inside()?.serve(&lab.guest, &disks)?;
    let controller = lab.connect("-i 1")?;
    let stays = lab.host().device(&controller, 1)?;
    let goes = lab.host().device(&controller, 2)?;
    Ok([stays, goes])
}

/// Takes the drive out of its slot by `take_out` under load: its I/O fails within `limit`, the other
/// drive's goes on; put back, the appliance takes it up by itself, and the host goes on with what
/// it held.
fn without_the_drive(
    lab: &mut Lab,
    take_out: fn(&Lab) -> Result<()>,
    limit: Duration,
) -> Result<()> {
    let [stays, goes] = serve_both(lab)?;
    put(lab, &goes, "/tmp/kept")?;
    let load = Fio::verify_for(&stays, 45);
    let load_that_stays = lab.guest.start(&load.script(), load.limit())?;
    // Beside what is to be found again.
    let load = Fio::verify_for(&goes, 60).options(&["--offset=16m"]);
    let load_that_goes = lab.guest.start(&load.script(), load.limit())?;
    still_runs(&load_that_goes, 3)?;
    let reads = format!("dd if={goes} of=/dev/null bs=4k count=1 iflag=direct status=none");
    let probe =
        format!("while {reads}; do sleep 0.2; done 2>/dev/null; date +%s.%N > /tmp/failed-at");
    let probe = lab.guest.start(&probe, LOAD_LIMIT)?;
    lab.guest.run("date +%s.%N > /tmp/gone-at")?;
    take_out(lab)?;
    let ended = load_that_goes.ends_within(LOAD_LIMIT)?;
    let ended = ended.context("the load on the missing drive neither fails nor ends")?;
    ensure!(ended.status != 0, "the load outlived its drive");
    probe.wait()?.success()?;
    let took = seconds_between(lab, "/tmp/gone-at", "/tmp/failed-at")?;
    ensure!(took < limit, "its I/O failed only after {took:?}");
    lab.inside()?.check(&lab.guest)?;
    gone(lab)?;
    put_back(lab)?;
    ready_again(lab, &goes)?;
    same(lab, &goes, "/tmp/kept").context("after the drive's return")?;
    Fio::verify(&goes)
        .options(&["--offset=16m", "--size=4m"])
        .run(&lab.guest)
        .context("after the drive's return")?;
    let told = lab.guest.run("dmesg | grep -c 'rescanning namespaces'")?;
    ensure!(told != "0", "the host was not told of the return");
    load_that_stays
        .wait()?
        .success()
        .context("the drive that stayed")?;
    detach(lab)
}

/// What lies between two times that the guest wrote down.
fn seconds_between(lab: &Lab, begin: &str, end: &str) -> Result<Duration> {
    let said = lab.guest.run(&format!("cat {begin} {end}"))?;
    let times: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let [begin, end] = times[..] else {
        bail!("no times: {said}");
    };
    Ok(Duration::from_secs_f64((end - begin).max(0.0)))
}

/// Waits until the kernel has lost the drive of the slot.
pub(super) fn gone(lab: &Lab) -> Result<()> {
    let gone = format!("[ ! -e /sys/bus/pci/devices/{} ]", IN_A_SLOT.address);
    let waited = lab.guest.until(&gone, Duration::from_secs(30));
    waited.context("the kernel does not get the drive back")?;
    Ok(())
}

/// Waits until a namespace can be read again at the host, by the block device that it had.
pub(super) fn ready_again(lab: &Lab, device: &str) -> Result<()> {
    let reads = format!("dd if={device} of=/dev/null bs=4k count=1 iflag=direct status=none");
    let waited = lab.guest.until(&reads, Duration::from_secs(45));
    waited.context("the namespace does not become ready again")?;
    Ok(())
}

/// How long after the power of a slot its indicator is surely off.
const INDICATOR_OFF: Duration = Duration::from_secs(4);

/// Puts the drive into its slot, if it is not there.
pub(super) fn put_back(lab: &Lab) -> Result<()> {
    let there = format!("[ -e /sys/bus/pci/devices/{}/driver ]", IN_A_SLOT.address);
    let is_there = lab.guest.attempt(&there, Duration::from_secs(20))?.status == 0;
    if !is_there {
        // The kernel takes the slot's power once the drive is gone: a new one would go with it.
        let off = format!(
            "p=$(grep -l {}$ /sys/bus/pci/slots/*/address) && grep -qx 0 ${{p%address}}power",
            &IN_A_SLOT.address[..IN_A_SLOT.address.len() - 2]
        );
        let powerless = lab.guest.until(&off, Duration::from_secs(30));
        powerless.context("the slot keeps its power")?;
        // A second after the power the kernel switches the indicator off, and only that ends it.
        thread::sleep(INDICATOR_OFF);
        // The emulator may still be taking the last one apart.
        let start = Instant::now();
        while let Err(error) = lab.guest.monitor()?.execute(&IN_A_SLOT.to_add()) {
            if start.elapsed() > Duration::from_secs(20) {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(200));
        }
        let back = lab.guest.until(&there, Duration::from_secs(45));
        back.context("the drive does not come back")?;
    }
    Ok(())
}

/// Asked for: the kernel wants the drive back, and corebay lets go.
fn taken_out_and_put_back(lab: &mut Lab) -> Result<()> {
    let take_out = |lab: &Lab| {
        lab.guest.monitor()?.execute(&IN_A_SLOT.to_remove())?;
        Ok(())
    };
    // The button of the slot takes five seconds.
    without_the_drive(lab, take_out, Duration::from_secs(20))
}

/// Not asked for: the slot's power goes, and with it the drive, at once.
fn torn_out_under_load(lab: &mut Lab) -> Result<()> {
    // The driver sees it within 50 ms, and ends what is in flight within as much; the rest of what is
    // measured is the emulated machine's: the host's programs and its kernel need seconds to see the failure
    // where processors are scarce. That is why the limit is above the time of a single command, 10 s: what
    // is proved is that nobody waits for the times of commands one after the other.
    without_the_drive(lab, tear_out, Duration::from_secs(30))
}

pub(super) fn tear_out(lab: &Lab) -> Result<()> {
    // First the link: by its Command register the drive answers no more and reaches no memory. (The
    // emulator does not bear a doorbell that is rung while it takes the drive apart.) Then Slot Control, of
    // the port's PCI Express capability (10h): power and its indicator off, with no event for the kernel.
    // Then all as it was, and the event for a slot that is empty, as slots without a button have it.
    lab.guest.run(&format!(
        r"set -e
          config=/sys/bus/pci/devices/{SLOT_PORT}/config
          byte() {{ od -An -tu1 -j $1 -N 1 $config | tr -d ' '; }}
          at=$(byte 52)
          until [ $(byte $at) = 16 ]; do at=$(byte $((at + 1))); done
          at=$((at + 24))
          put() {{
            bytes=$(printf '\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8)))
            printf $bytes | dd of=$config bs=2 seek=$((at / 2)) conv=notrunc status=none
          }}
          was=$(($(byte $at) | $(byte $((at + 1))) << 8))
          printf '\x00\x04' | dd of={drive} bs=2 seek=2 conv=notrunc status=none
          date +%s.%N > /tmp/gone-at
          put $((was & ~0x38 | 0x700))
          put $((was | 8))",
        drive = format_args!("/sys/bus/pci/devices/{}/config", IN_A_SLOT.address)
    ))?;
    Ok(())
}

/// Given back to the kernel while it is served, a drive stays the kernel's; bound again, it is served
/// again.
fn bound_again_while_served(lab: &mut Lab) -> Result<()> {
    let [stays, goes] = serve_both(lab)?;
    put(lab, &goes, "/tmp/kept")?;
    let load = Fio::verify_for(&stays, 20);
    let load = lab.guest.start(&load.script(), load.limit())?;
    give_back(lab, &IN_A_SLOT, 1)?;
    let fails =
        format!("! dd if={goes} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; sleep 2");
    lab.guest.run(&fails)?;
    ensure!(
        driver(lab, &IN_A_SLOT)? == "nvme",
        "what was given back on purpose was taken again"
    );
    lend(lab, &IN_A_SLOT)?;
    ready_again(lab, &goes)?;
    same(lab, &goes, "/tmp/kept")?;
    load.wait()?.success().context("the drive that stayed")?;
    detach(lab)
}

/// A process whose drive was lost ends in time, and says by its status that not all was flushed.
fn the_end_without_a_drive(lab: &mut Lab) -> Result<()> {
    serve_both(lab)?;
    tear_out(lab)?;
    gone(lab)?;
    lab.guest.run("nvme disconnect-all")?;
    let status = lab.inside()?.end(&lab.guest)?;
    ensure!(status == 1, "the exit status is {status}");
    put_back(lab)
}
