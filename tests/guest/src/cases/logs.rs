//! Owns the tests of log pages: health counters that count, errors that are told, effects, ANA.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("smart_log", smart_log),
    Case::new("smart_counters", smart_counters).peer(),
    Case::new("error_log", error_log),
    Case::new("firmware_log", firmware_log),
    Case::new("effects_log", effects_log),
    Case::new("supported_log_pages", supported_log_pages),
    Case::new("ana_log", ana_log).peer(),
    Case::new("changed_namespaces_log", changed_namespaces_log).peer(),
    Case::new("unknown_log", unknown_log).peer(),
];

fn number(value: &Value, field: &str) -> Result<u64> {
    value[field]
        .as_u64()
        .with_context(|| format!("no number {field} in {value}"))
}

fn smart_log(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let smart = lab
        .host()
        .json(&format!("smart-log /dev/{}", controller.name))?;
    ensure!(
        number(&smart, "critical_warning")? == 0,
        "critical warning in {smart}"
    );
    ensure!(
        number(&smart, "avail_spare")? == 100,
        "available spare in {smart}"
    );
    ensure!(
        number(&smart, "spare_thresh")? < 100,
        "spare threshold in {smart}"
    );
    ensure!(
        number(&smart, "percent_used")? == 0,
        "percentage used in {smart}"
    );
    ensure!(
        number(&smart, "media_errors")? == 0,
        "media errors in {smart}"
    );
    Ok(())
}

/// 20 MiB written and 10 MiB read must show: data units are 1,000 times 512 bytes, rounded up.
fn smart_counters(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, "")?;
    let read = || {
        lab.host()
            .json(&format!("smart-log /dev/{}", controller.name))
    };
    let before = read()?;
    lab.guest.run(&format!(
        "dd if=/dev/zero of={device} bs=128k count=160 oflag=direct conv=notrunc status=none
         dd if={device} of=/dev/null bs=128k count=80 iflag=direct status=none"
    ))?;
    let after = read()?;
    let grown = |field: &str| -> Result<u64> {
        let (old, new) = (number(&before, field)?, number(&after, field)?);
        new.checked_sub(old)
            .with_context(|| format!("{field} fell from {old} to {new}"))
    };
    // 20 MiB are 40.96 units and 10 MiB are 20.48; the kernel may read a little by itself,
    // and cuts an operation whose pages are scattered.
    for (field, range) in [
        ("data_units_written", 40..=42),
        ("data_units_read", 20..=24),
        ("host_write_commands", 160..=700),
        ("host_read_commands", 80..=400),
    ] {
        let growth = grown(field)?;
        ensure!(
            range.contains(&growth),
            "{field} grew by {growth}, expected {range:?}"
        );
    }
    Ok(())
}

/// The newest entry is the command that just failed.
fn error_log(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, "")?;
    let smart = || {
        lab.host()
            .json(&format!("smart-log /dev/{}", controller.name))
    };
    let before = number(&smart()?, "num_err_log_entries")?;
    let beyond = lab.endpoint().namespace(1).blocks() + 77;
    lab.device_script(
        &device,
        1,
        &format!("status 0x80 nvme read $D -s {beyond} -c 0 -z $B -d x"),
    )?;
    let after = number(&smart()?, "num_err_log_entries")?;
    ensure!(
        after > before,
        "the number of error log entries stays {after}"
    );
    let log = lab
        .host()
        .json(&format!("error-log /dev/{} -e 4", controller.name))?;
    let entries = log["errors"].as_array().context("no errors")?;
    let newest = entries
        .iter()
        .max_by_key(|entry| entry["error_count"].as_u64());
    let newest = newest.context("an empty error log")?;
    ensure!(
        newest == &entries[0],
        "the newest entry is not the first in {log}"
    );
    // nvme-cli shows the status without the phase tag; DNR and More are above the type and code.
    ensure!(
        number(newest, "status_field")? & 0x7ff == 0x80,
        "status in {newest}"
    );
    ensure!(number(newest, "nsid")? == 1, "namespace in {newest}");
    ensure!(number(newest, "lba")? == beyond, "LBA in {newest}");
    ensure!(number(newest, "sqid")? >= 1, "queue in {newest}");
    Ok(())
}

/// One active slot, and its revision is the one of Identify.
fn firmware_log(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let revision = lab.host().attribute(&controller, "firmware_rev")?;
    let name = &controller.name;
    let bytes = lab.guest.run(&format!(
        "nvme get-log /dev/{name} -i 3 -l 512 -b > log
         od -An -tu1 -N1 log; tail -c +9 log | head -c 8"
    ))?;
    let (active, slot) = bytes.split_once('\n').context("a firmware log")?;
    ensure!(
        active.trim().parse::<u8>()? & 7 == 1,
        "active firmware slot {active}"
    );
    ensure!(
        slot.trim() == revision,
        "slot 1 holds {slot:?}, the revision is {revision:?}"
    );
    Ok(())
}

/// Every command that the target has is marked as supported.
fn effects_log(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let name = &controller.name;
    let words = lab.guest.run(&format!(
        "nvme get-log /dev/{name} -i 5 -l 4096 -b | od -An -v -tx4 -w4 | tr -d ' '"
    ))?;
    let words: Vec<u32> = words
        .lines()
        .filter_map(|w| u32::from_str_radix(w, 16).ok())
        .collect();
    ensure!(words.len() == 1024, "{} words in the log", words.len());
    // Get Log Page, Identify, Abort, Set and Get Features, Asynchronous Event Request, Keep Alive.
    for opcode in [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18] {
        ensure!(
            words[opcode] & 1 == 1,
            "admin opcode {opcode:#x} is not marked"
        );
    }
    // Flush, Write, Read, Write Uncorrectable, Compare, Write Zeroes, DSM, Verify, Copy.
    for opcode in [0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19] {
        ensure!(
            words[256 + opcode] & 1 == 1,
            "I/O opcode {opcode:#x} is not marked"
        );
    }
    // Write, Write Uncorrectable, Write Zeroes, DSM and Copy change data.
    for opcode in [0x01, 0x04, 0x08, 0x09, 0x19] {
        ensure!(
            words[256 + opcode] & 2 == 2,
            "I/O opcode {opcode:#x} changes data"
        );
    }
    Ok(())
}

fn supported_log_pages(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let name = &controller.name;
    let words = lab.guest.run(&format!(
        "nvme get-log /dev/{name} -i 0 -l 1024 -b | od -An -v -tx4 -w4 | tr -d ' '"
    ))?;
    let words: Vec<u32> = words
        .lines()
        .filter_map(|w| u32::from_str_radix(w, 16).ok())
        .collect();
    ensure!(words.len() == 256, "{} words in the log", words.len());
    for page in [0x00, 0x01, 0x02, 0x03, 0x05, 0x0c, 0x12] {
        ensure!(
            words[page] & 1 == 1,
            "log page {page:#x} is not marked as supported"
        );
    }
    for (page, word) in words.iter().enumerate() {
        let marked = word & 1 == 1;
        let get = format!("nvme get-log /dev/{name} -i {page} -l 16 -b > log 2>&1");
        // Those of discovery are for discovery controllers.
        if marked && page != 0x70 {
            lab.guest
                .run(&get)
                .with_context(|| format!("log page {page:#x} is marked"))?;
        }
    }
    Ok(())
}

fn ana_log(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let log = lab
        .host()
        .json(&format!("ana-log /dev/{}", controller.name))?;
    let text = log.to_string();
    ensure!(text.contains("optimized"), "no optimized group in {log}");
    ensure!(
        !text.contains("inaccessible") && !text.contains("loss"),
        "states in {log}"
    );
    let states = lab
        .guest
        .run("cat /sys/class/nvme/*/nvme*c*n*/ana_state | sort -u")?;
    ensure!(states == "optimized", "the kernel has {states:?}");
    Ok(())
}

fn changed_namespaces_log(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let name = &controller.name;
    // Nothing changed since the host connected and read it: all zeros.
    lab.guest.run(&format!(
        "nvme get-log /dev/{name} -i 4 -l 4096 -b > log && cmp -n 4096 log /dev/zero"
    ))?;
    Ok(())
}

fn unknown_log(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    // Invalid Log Page, or the general Invalid Field that the kernel's target answers.
    let code = if lab.is_peer() { "0x02" } else { "0x109" };
    let name = &controller.name;
    lab.helper_script(&format!(
        "status {code} nvme get-log /dev/{name} -i 0xbf -l 512 -b"
    ))?;
    Ok(())
}
