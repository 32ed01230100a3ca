//! Owns the tests of Get Features and Set Features: current, default and saved values, capabilities.

use anyhow::{Context, Result, ensure};

use crate::initiator::Controller;
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("number_of_queues", number_of_queues).peer(),
    Case::new("keep_alive_timer", keep_alive_timer).peer(),
    Case::new("async_event_configuration", async_event_configuration),
    Case::new("mandatory_features", mandatory_features),
    Case::new("temperature_threshold", temperature_threshold),
    Case::new("volatile_write_cache", volatile_write_cache).peer(),
    Case::new("host_identifier", host_identifier).peer(),
    Case::new("unknown_feature", unknown_feature).peer(),
];

const CURRENT: u32 = 0;
const DEFAULT: u32 = 1;
const CAPABILITIES: u32 = 3;

/// Completion dword 0 of Get Features.
fn get(lab: &Lab, controller: &Controller, feature: u32, select: u32) -> Result<u32> {
    let cdw10 = feature | select << 8;
    let name = &controller.name;
    let command = format!("nvme admin-passthru /dev/{name} --opcode=0x0a --cdw10={cdw10:#x} 2>&1");
    let said = lab.guest.run(&command)?;
    let value = said.rsplit(':').next().map(str::trim).unwrap_or_default();
    let digits = value.trim_start_matches("0x");
    u32::from_str_radix(digits, 16).with_context(|| format!("get feature {feature:#x}: {said}"))
}

fn set(lab: &Lab, controller: &Controller, feature: u32, value: u32) -> Result<()> {
    let name = &controller.name;
    lab.guest.run(&format!(
        "nvme admin-passthru /dev/{name} --opcode=0x09 --cdw10={feature:#x} --cdw11={value:#x}"
    ))?;
    Ok(())
}

fn number_of_queues(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("-i 2")?;
    let queues = lab.host().attribute(&controller, "queue_count")?;
    ensure!(
        queues == "3",
        "{queues} queues, expected one for administration and two for I/O"
    );
    let value = get(lab, &controller, 7, CURRENT)?;
    let (submission, completion) = (value & 0xffff, value >> 16);
    ensure!(
        submission >= 1 && completion >= 1,
        "allocated {value:#x} (0's based)"
    );
    Ok(())
}

fn keep_alive_timer(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("--keep-alive-tmo=7")?;
    let value = get(lab, &controller, 0x0f, CURRENT)?;
    // The kernel's target rounds up to its granularity of seconds.
    ensure!(
        value == 7_000,
        "keep alive timer of {value} ms, connected with 7 s"
    );
    Ok(())
}

fn async_event_configuration(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let value = get(lab, &controller, 0x0b, CURRENT)?;
    ensure!(
        value & 0x100 != 0,
        "the kernel asks for namespace notices, the target has {value:#x}"
    );
    set(lab, &controller, 0x0b, 0x100)?;
    let value = get(lab, &controller, 0x0b, CURRENT)?;
    ensure!(value == 0x100, "set 0x100, got {value:#x}");
    Ok(())
}

/// What Base 2.1 demands of an I/O controller: arbitration, power, temperature, errors, queues, events.
fn mandatory_features(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    for feature in [0x01, 0x02, 0x04, 0x05, 0x07, 0x0b] {
        for select in [CURRENT, DEFAULT, CAPABILITIES] {
            get(lab, &controller, feature, select)
                .with_context(|| format!("feature {feature:#x}, select {select}"))?;
        }
    }
    Ok(())
}

fn temperature_threshold(lab: &mut Lab) -> Result<()> {
    const THRESHOLD: u32 = 0x04;
    let controller = lab.connect("")?;
    let default = get(lab, &controller, THRESHOLD, DEFAULT)?;
    ensure!(
        default & 0xffff == 0xffff,
        "by default no over-temperature: 0xffff, got {default:#x}"
    );
    let capabilities = get(lab, &controller, THRESHOLD, CAPABILITIES)?;
    ensure!(
        capabilities & 0b100 != 0,
        "not changeable: capabilities {capabilities:#x}"
    );
    set(lab, &controller, THRESHOLD, 353)?;
    let value = get(lab, &controller, THRESHOLD, CURRENT)?;
    ensure!(value & 0xffff == 353, "set 353 K, got {value:#x}");
    ensure!(
        get(lab, &controller, THRESHOLD, DEFAULT)? == default,
        "the default moved"
    );
    Ok(())
}

/// VWC in Identify and the feature agree, and the kernel draws the right conclusion.
fn volatile_write_cache(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, "")?;
    let id = lab
        .host()
        .json(&format!("id-ctrl /dev/{}", controller.name))?;
    let present = id["vwc"].as_u64().context("vwc")? & 1 == 1;
    let name = device.trim_start_matches("/dev/");
    let kernel = lab
        .guest
        .run(&format!("cat /sys/block/{name}/queue/write_cache"))?;
    let expected = if present {
        "write back"
    } else {
        "write through"
    };
    ensure!(
        kernel == expected,
        "the kernel has {kernel:?}, VWC is {}",
        id["vwc"]
    );
    if present && !lab.is_peer() {
        let value = get(lab, &controller, 0x06, CURRENT)?;
        ensure!(
            value & 1 == 1,
            "a write cache that is there and off: {value:#x}"
        );
    }
    if !present && !lab.is_peer() {
        // Invalid Field in Command: without a cache there is no feature for one.
        let name = &controller.name;
        lab.helper_script(&format!(
            "status 0x02 nvme admin-passthru /dev/{name} --opcode=0x0a --cdw10=0x06
             status 0x02 nvme admin-passthru /dev/{name} --opcode=0x09 --cdw10=0x06 --cdw11=1"
        ))?;
    }
    Ok(())
}

fn host_identifier(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    // EXHID: 128 bits, which fabrics demand.
    let name = &controller.name;
    let get = "--opcode=0x0a --cdw10=0x81 --cdw11=1 -l 16 -r -b";
    let bytes = lab.guest.run(&format!(
        "nvme admin-passthru /dev/{name} {get} | od -An -tx1"
    ))?;
    let ours: String = bytes.split_whitespace().collect();
    let host = lab.guest.run("cat /etc/nvme/hostid")?;
    let host: String = host.chars().filter(char::is_ascii_hexdigit).collect();
    ensure!(ours == host, "host identifier {ours}, the host is {host}");
    Ok(())
}

fn unknown_feature(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let name = &controller.name;
    lab.helper_script(&format!(
        "status 0x02 nvme admin-passthru /dev/{name} --opcode=0x0a --cdw10=0x7e
         status 0x02 nvme admin-passthru /dev/{name} --opcode=0x09 --cdw10=0x7e --cdw11=1"
    ))?;
    Ok(())
}
