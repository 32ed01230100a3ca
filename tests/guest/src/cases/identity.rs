//! Owns the tests of what the target says about itself: Identify, lists, what the kernel makes of them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::endpoint::{NQN, PORT};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("id_ctrl", id_ctrl),
    Case::new("id_ctrl_matches_the_kernel", id_ctrl_matches_the_kernel).peer(),
    Case::new("id_ns", id_ns).peer(),
    Case::new("ns_descriptors", ns_descriptors),
    Case::new("list", list).peer(),
    Case::new("list_ns", list_ns).peer(),
    Case::new("list_subsys", list_subsys).peer(),
    Case::new("inactive_namespace", inactive_namespace),
    Case::new("block_formats", block_formats).peer(),
];

fn number(value: &Value, field: &str) -> Result<u64> {
    value[field]
        .as_u64()
        .with_context(|| format!("no number {field} in {value}"))
}

fn text(value: &Value, field: &str) -> Result<String> {
    let text = value[field]
        .as_str()
        .with_context(|| format!("no text {field} in {value}"))?;
    Ok(text.trim().to_owned())
}

/// One expectation of a number.
enum Must {
    Be(u64),
    HaveBits(u64),
    BeAtLeast(u64),
}

fn check(value: &Value, expectations: &[(&str, Must)]) -> Result<()> {
    let mut wrong = Vec::new();
    for (field, must) in expectations {
        let is = number(value, field)?;
        let (good, expected) = match *must {
            Must::Be(number) => (is == number, format!("{number:#x}")),
            Must::HaveBits(bits) => (is & bits == bits, format!("with bits {bits:#x}")),
            Must::BeAtLeast(least) => (is >= least, format!("at least {least}")),
        };
        if !good {
            wrong.push(format!("{field} is {is:#x}, expected {expected}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn id_ctrl(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let id = lab
        .host()
        .json(&format!("id-ctrl /dev/{}", controller.name))?;
    ensure!(text(&id, "subnqn")? == NQN, "subnqn {}", id["subnqn"]);
    for field in ["sn", "mn", "fr"] {
        let content = text(&id, field)?;
        let printable = content.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        ensure!(!content.is_empty() && printable, "{field} is {content:?}");
    }
    check(
        &id,
        &[
            ("ver", Must::Be(0x0002_0100)),
            ("cntrltype", Must::Be(1)),
            ("cntlid", Must::BeAtLeast(1)),
            // 128-bit host identifier.
            ("ctratt", Must::HaveBits(1)),
            // Keep Alive granularity of 100 ms.
            ("kas", Must::Be(1)),
            ("sqes", Must::Be(0x66)),
            ("cqes", Must::Be(0x44)),
            ("maxcmd", Must::BeAtLeast(128)),
            ("mdts", Must::BeAtLeast(5)),
            (
                "nn",
                Must::BeAtLeast(lab.endpoint().namespaces.len() as u64),
            ),
            // Compare, Write Uncorrectable, Dataset Management, Write Zeroes, feature save and
            // select, Verify, Copy.
            ("oncs", Must::HaveBits(0x19f)),
            ("fuses", Must::Be(1)),
            ("sgls", Must::HaveBits(0x0010_0001)),
            // A 64-byte command and at least 4 KiB of data in a capsule; a response has no data.
            ("ioccsz", Must::BeAtLeast(260)),
            ("iorcsz", Must::Be(1)),
            ("icdoff", Must::Be(0)),
            ("fcatt", Must::Be(0)),
            ("msdbd", Must::BeAtLeast(1)),
            // Several controllers, and ANA reported.
            ("cmic", Must::HaveBits(0b1010)),
            ("anagrpmax", Must::BeAtLeast(1)),
            ("nanagrpid", Must::BeAtLeast(1)),
            ("anatt", Must::BeAtLeast(1)),
            // Namespace attribute changes are announced.
            ("oaes", Must::HaveBits(1 << 8)),
        ],
    )
}

fn id_ctrl_matches_the_kernel(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let id = lab
        .host()
        .json(&format!("id-ctrl /dev/{}", controller.name))?;
    for (field, attribute) in [
        ("sn", "serial"),
        ("mn", "model"),
        ("fr", "firmware_rev"),
        ("subnqn", "subsysnqn"),
    ] {
        let kernel = lab.host().attribute(&controller, attribute)?;
        ensure!(
            text(&id, field)? == kernel,
            "{field} is {}, the kernel has {kernel}",
            id[field]
        );
    }
    let cntlid = lab.host().attribute(&controller, "cntlid")?;
    ensure!(
        number(&id, "cntlid")?.to_string() == cntlid,
        "cntlid, the kernel has {cntlid}"
    );
    let address = lab.host().attribute(&controller, "address")?;
    let wanted = format!("traddr={},trsvcid={PORT}", lab.endpoint().address());
    ensure!(address.starts_with(&wanted), "address {address}");
    Ok(())
}

fn id_ns(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    for namespace in lab.endpoint().namespaces.clone() {
        let device = lab.host().device(&controller, namespace.nsid)?;
        let id = lab.host().json(&format!("id-ns {device}"))?;
        for field in ["nsze", "ncap"] {
            let is = number(&id, field)?;
            ensure!(is == namespace.blocks(), "{field} of {namespace:?} is {is}");
        }
        ensure!(
            number(&id, "nuse")? <= namespace.blocks(),
            "nuse of {namespace:?}"
        );
        let format = usize::try_from(number(&id, "flbas")? & 0xf)?;
        let format = &id["lbafs"][format];
        ensure!(number(format, "ms")? == 0, "metadata in {format}");
        ensure!(
            1 << number(format, "ds")? == namespace.block,
            "{namespace:?} has format {format}"
        );
        // Shared between controllers.
        ensure!(number(&id, "nmic")? & 1 == 1, "nmic {}", id["nmic"]);
    }
    Ok(())
}

fn ns_descriptors(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let mut seen = Vec::new();
    for namespace in lab.endpoint().namespaces.clone() {
        let device = lab.host().device(&controller, namespace.nsid)?;
        let list = lab.host().json(&format!("ns-descs {device}"))?;
        let entries = list["ns-descs"].as_array().context("no ns-descs")?;
        let find = |kind: &str| {
            let entry = entries.iter().find(|entry| entry["Type"] == kind);
            entry
                .and_then(|entry| entry[kind].as_str())
                .map(str::to_owned)
        };
        let uuid = find("uuid").with_context(|| format!("no UUID in {list}"))?;
        let nguid = find("nguid").with_context(|| format!("no NGUID in {list}"))?;
        ensure!(
            find("csi").as_deref() == Some("0"),
            "no command set identifier in {list}"
        );
        for id in [&uuid, &nguid] {
            ensure!(
                id.bytes().any(|b| b != b'0' && b != b'-'),
                "an identifier of zeros in {list}"
            );
            ensure!(!seen.contains(id), "{id} names two namespaces");
            seen.push(id.clone());
        }
        let identify = lab.host().json(&format!("id-ns {device}"))?;
        ensure!(
            identify["nguid"] == nguid.as_str(),
            "id-ns says NGUID {}",
            identify["nguid"]
        );
        let name = device.trim_start_matches("/dev/");
        let kernel = lab.guest.run(&format!(
            "cat /sys/block/{name}/uuid /sys/block/{name}/nguid"
        ))?;
        let kernel: String = kernel.chars().filter(char::is_ascii_hexdigit).collect();
        let ours: String = format!("{uuid}{nguid}")
            .chars()
            .filter(char::is_ascii_hexdigit)
            .collect();
        ensure!(
            kernel == ours,
            "the kernel has {kernel}, the target says {ours}"
        );
    }
    Ok(())
}

fn list(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let serial = lab.host().attribute(&controller, "serial")?;
    let namespaces = lab.endpoint().namespaces.clone();
    for namespace in &namespaces {
        lab.host().device(&controller, namespace.nsid)?;
    }
    let list = lab.host().json("list")?;
    let devices = list["Devices"].as_array().context("no devices")?;
    ensure!(
        devices.len() == namespaces.len(),
        "{} devices in {list}",
        devices.len()
    );
    for namespace in namespaces {
        let device = devices
            .iter()
            .find(|device| device["NameSpace"] == namespace.nsid);
        let device = device.with_context(|| format!("{namespace:?} is not in {list}"))?;
        ensure!(
            text(device, "SerialNumber")? == serial,
            "serial number in {device}"
        );
        ensure!(
            number(device, "PhysicalSize")? == namespace.bytes(),
            "size in {device}"
        );
        ensure!(
            number(device, "SectorSize")? == namespace.block,
            "block in {device}"
        );
        ensure!(
            number(device, "MaximumLBA")? == namespace.blocks(),
            "blocks in {device}"
        );
        ensure!(
            number(device, "UsedBytes")? <= namespace.bytes(),
            "used bytes in {device}"
        );
    }
    Ok(())
}

fn list_ns(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let expected: Vec<u32> = lab.endpoint().namespaces.iter().map(|n| n.nsid).collect();
    let all = lab
        .host()
        .json(&format!("list-ns /dev/{}", controller.name))?;
    let ids = |list: &Value| -> Option<Vec<u64>> {
        list["nsid_list"]
            .as_array()?
            .iter()
            .map(|entry| entry["nsid"].as_u64())
            .collect()
    };
    let expected: Vec<u64> = expected.into_iter().map(u64::from).collect();
    ensure!(
        ids(&all).as_deref() == Some(&expected[..]),
        "list-ns says {all}"
    );
    // From a given id on: only the greater ones.
    let after = lab
        .host()
        .json(&format!("list-ns /dev/{} -n 1", controller.name))?;
    let rest: Vec<u64> = expected.into_iter().filter(|&nsid| nsid >= 1).collect();
    // nvme-cli asks for the ids from the given one on.
    ensure!(
        ids(&after).as_deref() == Some(&rest[..]),
        "list-ns -n 1 says {after}"
    );
    Ok(())
}

fn list_subsys(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let list = lab.host().json("list-subsys")?;
    let subsystems = list[0]["Subsystems"].as_array().context("no subsystems")?;
    ensure!(
        subsystems.len() == 1 && subsystems[0]["NQN"] == NQN,
        "list-subsys says {list}"
    );
    let paths = subsystems[0]["Paths"].as_array().context("no paths")?;
    ensure!(paths.len() == 1, "paths in {list}");
    ensure!(
        paths[0]["Name"] == controller.name.as_str(),
        "controller in {list}"
    );
    ensure!(
        paths[0]["Transport"] == "tcp" && paths[0]["State"] == "live",
        "path in {list}"
    );
    Ok(())
}

/// An NSID that is valid but unused identifies as zeros; one beyond NN is refused.
fn inactive_namespace(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    let name = controller.name;
    let nn = number(&lab.host().json(&format!("id-ctrl /dev/{name}"))?, "nn")?;
    let identify = |nsid: u64| {
        format!("admin-passthru /dev/{name} --opcode=6 -n {nsid} --cdw10=0 -l 4096 -r -b")
    };
    if nn > lab.endpoint().namespaces.len() as u64 {
        let script = format!("nvme {} > id; cmp -n 4096 id /dev/zero", identify(nn));
        lab.helper_script(&script)?;
    }
    let refused = format!("status 0x0b nvme {}", identify(nn + 1));
    lab.helper_script(&refused)?;
    Ok(())
}

fn block_formats(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    for namespace in lab.endpoint().namespaces.clone() {
        let device = lab.host().device(&controller, namespace.nsid)?;
        lab.device_script(
            &device,
            namespace.nsid,
            "equal 'logical block' \"$(blockdev --getss $D)\" $B
             equal 'size in bytes' \"$(blockdev --getsize64 $D)\" $((N * B))
             random 8 a; put 0 8 a; same 0 8 a
             random 3 b; put $((N - 3)) 3 b; same $((N - 3)) 3 b; same 0 8 a",
        )?;
    }
    Ok(())
}
