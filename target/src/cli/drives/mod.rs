//! `corebay drives`: the machine's NVMe drives, and whether corebay or the kernel drives them.

use std::{path::Path, process::ExitCode};

use corebay_nvme::machine::{
    MachineDrive, VFIO_DRIVER, all_users,
    binding::{BindRefusal, bind, unbind},
    drives, openers,
};
use serde_json::{Value, json};

mod alone;
mod measure;
mod show;

use super::{
    Format,
    client::{Asking, Client},
    failure::Failure,
    table::Table,
};

/// What `corebay drives` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corebay drives                         what drives there are, and who uses them
  corebay drives show 0000:01:00.0       its health and its firmware
  corebay drives bench 0000:01:00.0      how fast it reads, once it is bound
  corebay drives bind 0000:01:00.0       takes a drive from the kernel, for `corebay serve`
  corebay drives unbind 0000:01:00.0     gives it back")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the drives
    List,
    /// Say how a drive is: health, temperature, wear, media errors, firmware. A drive that a running
    /// appliance has is asked by that
    Show {
        /// Its PCI address, as `corebay drives` shows it
        #[arg(value_name = "ADDRESS", value_parser = address)]
        address: String,
    },
    /// Measure a drive under corebay's own driver, with nothing above it
    Bench(measure::Args),
    /// Take drives from the kernel's driver, for corebay's own
    Bind {
        /// PCI addresses, as `corebay drives` shows them
        #[arg(required = true, value_name = "ADDRESS", value_parser = address)]
        addresses: Vec<String>,
    },
    /// Give drives back to the driver that they had
    Unbind {
        /// Also where a process drives them: what lies on them is away until they are bound again
        #[arg(long)]
        force: bool,
        /// PCI addresses, as `corebay drives` shows them
        #[arg(required = true, value_name = "ADDRESS", value_parser = address)]
        addresses: Vec<String>,
    },
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    let root = Path::new("/");
    let done = match &args.action {
        None | Some(Action::List) => {
            let mut drives = drives(root);
            if drives.iter().any(|drive| drive.is_lent()) {
                ask_appliance(&args.asking, &mut drives);
            }
            match args.asking.output {
                Format::Text => print!("{}", as_text(root, &drives)),
                Format::Json => println!("{:#}", as_json(root, &drives)),
            }
            Ok(())
        }
        Some(Action::Show { address }) => {
            let drive = show::ask(&args.asking, address);
            return print(args, drive, show::as_text);
        }
        Some(Action::Bench(asked)) => return print(args, measure::run(asked), measure::as_text),
        Some(Action::Bind { addresses }) => addresses.iter().try_for_each(|address| {
            bind(root, address).map(|()| say(args, address, VFIO_DRIVER, "bound to vfio-pci"))
        }),
        Some(Action::Unbind { force, addresses }) => addresses.iter().try_for_each(|address| {
            let driver = unbind(root, address, *force)?;
            let text = match driver.as_str() {
                "" => "without a driver, as before".to_owned(),
                driver => format!("given back to {driver}"),
            };
            say(args, address, &driver, &text);
            Ok(())
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => explain(&refusal).report_as(args.asking.output, "drives"),
    }
}

/// Says who has a drive now: one line for each, in JSON too.
fn say(args: &Args, address: &str, driver: &str, text: &str) {
    match args.asking.output {
        Format::Text => println!("{address}: {text}"),
        Format::Json => println!("{}", json!({ "address": address, "driver": driver })),
    }
}

/// A PCI address in full; its domain may be left out.
fn address(text: &str) -> Result<String, String> {
    let address = corebay_conf::disk_spec::pci_address(text);
    address
        .ok_or_else(|| "a PCI address is like 0000:01:00.0: `corebay drives` lists them".to_owned())
}

fn print(args: &Args, result: Result<Value, Failure>, as_text: fn(&Value) -> String) -> ExitCode {
    match (result, args.asking.output) {
        (Ok(result), Format::Text) => print!("{}", as_text(&result)),
        (Ok(result), Format::Json) => println!("{result:#}"),
        (Err(failure), _) => return failure.report_as(args.asking.output, "drives"),
    }
    ExitCode::SUCCESS
}

fn explain(refusal: &BindRefusal) -> Failure {
    Failure::new(refusal.to_string(), refusal.help())
}

fn as_text(root: &Path, drives: &[MachineDrive]) -> String {
    if drives.is_empty() {
        return "the machine has no NVMe drives\n".to_owned();
    }
    let mut table = Table::new(&[
        "ADDRESS", "MODEL", "SERIAL", ">SIZE", "DRIVER", ">GROUP", ">NUMA", "USE",
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for drive in drives {
        table.row(vec![
            drive.address.clone(),
            or_dash(drive.model.clone()),
            or_dash(drive.serial.clone()),
            match drive.bytes() {
                0 if drive.namespaces.is_empty() => "-".to_owned(),
                bytes => size(bytes),
            },
            or_dash(drive.driver.clone()),
            or_dash(drive.iommu_group.map(|group| group.to_string())),
            or_dash(drive.numa_node.map(|node| node.to_string())),
            used(root, drive),
        ]);
    }
    table.to_string()
}

fn used(root: &Path, drive: &MachineDrive) -> String {
    let users = all_users(root, drive);
    match (users.as_slice(), drive.group_mates.as_slice()) {
        ([], []) if drive.is_lent() => "free, lent to user space".to_owned(),
        ([], []) => "free".to_owned(),
        ([], mates) => format!("shares its group with {}", mates.join(", ")),
        (users, _) => users.join(", "),
    }
}

/// A running appliance knows the drives that it has better than what was written down of them.
fn ask_appliance(asking: &Asking, drives: &mut [MachineDrive]) {
    let asked =
        Client::connect(asking).and_then(|mut client| client.call("drive.list", &json!({})));
    // Where none answers, there is less to tell.
    for known in asked.iter().filter_map(Value::as_array).flatten() {
        merge(known, drives);
    }
}

fn merge(known: &Value, drives: &mut [MachineDrive]) {
    let lent = drives.iter_mut().filter(|drive| drive.is_lent());
    let mut same = lent.filter(|drive| known["address"] == *drive.address);
    if let Some(drive) = same.next() {
        let text = |name: &str| known[name].as_str().map(str::to_owned);
        drive.model = text("model").or(drive.model.take());
        drive.serial = text("serial").or(drive.serial.take());
        drive.former_bytes = known["bytes"].as_u64().or(drive.former_bytes);
    }
}

/// A size as drives are sold.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{size:.2} {}", UNITS[unit]),
    }
}

fn as_json(root: &Path, drives: &[MachineDrive]) -> Value {
    let drives: Vec<Value> = drives
        .iter()
        .map(|drive| {
            let namespaces = drive.namespaces.iter().map(|namespace| {
                json!({
                    "name": namespace.name,
                    "bytes": namespace.bytes,
                    "wwid": namespace.wwid,
                    "users": namespace.users,
                })
            });
            json!({
                "address": drive.address,
                "vendor": drive.ids.0,
                "device": drive.ids.1,
                "driver": drive.driver,
                "iommu_group": drive.iommu_group,
                "group_mates": drive.group_mates,
                "numa_node": drive.numa_node,
                "model": drive.model,
                "serial": drive.serial,
                "bytes": Some(drive.bytes()).filter(|bytes| *bytes > 0),
                "openers": openers(root, drive),
                "namespaces": namespaces.collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "drives": drives })
}

#[cfg(test)]
mod tests {
    use corebay_nvme::machine::MachineNamespace;

    use super::*;

    #[test]
    fn addresses_are_told_in_full() {
        assert_eq!(address("01:00.0").as_deref(), Ok("0000:01:00.0"));
        assert_eq!(address("0001:0A:00.1").as_deref(), Ok("0001:0a:00.1"));
        assert!(address("nvme0").is_err());
    }

    #[test]
    fn a_line_for_each_drive() {
        let used = MachineDrive {
            address: "0000:01:00.0".into(),
            driver: Some("nvme".into()),
            model: Some("Model X".into()),
            serial: Some("S1".into()),
            iommu_group: Some(7),
            namespaces: vec![MachineNamespace {
                name: "nvme0n1".into(),
                bytes: 1_920_383_410_176,
                users: vec!["nvme0n1 is mounted on /srv".into()],
                ..MachineNamespace::default()
            }],
            ..MachineDrive::default()
        };
        let lent = MachineDrive {
            address: "0000:02:00.0".into(),
            driver: Some("vfio-pci".into()),
            iommu_group: Some(8),
            numa_node: Some(1),
            ..MachineDrive::default()
        };
        let recorded = MachineDrive {
            address: "0000:03:00.0".into(),
            model: Some("Model Y".into()),
            serial: Some("S3".into()),
            former_bytes: Some(3_840_755_982_336),
            ..lent.clone()
        };
        let mut all = [used, lent, recorded];
        let text = as_text(Path::new("/nonexistent"), &all);
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let third = words(lines[3]);
        assert!(
            third.starts_with("0000:03:00.0 Model Y S3 3.84 TB vfio-pci 8 1"),
            "{third}"
        );
        let second = words(lines[2]);
        assert!(
            second.starts_with("0000:02:00.0 - - - vfio-pci"),
            "{second}"
        );
        let of_appliance = |address: &str| json!({ "address": address, "model": "Model Z", "serial": "S2", "bytes": 1_000_000 });
        merge(&of_appliance("0000:02:00.0"), &mut all);
        merge(&of_appliance("0000:01:00.0"), &mut all);
        let text = as_text(Path::new("/nonexistent"), &all);
        assert!(
            words(&text).contains("0000:02:00.0 Model Z S2 1.00 MB vfio-pci"),
            "{text}"
        );
        assert!(
            words(&text).contains("0000:01:00.0 Model X S1 1.92 TB nvme"),
            "the kernel's: {text}"
        );
        assert!(lines[1].contains("1.92 TB") && lines[1].ends_with("mounted on /srv"));
        assert!(lines[2].contains("vfio-pci") && lines[2].ends_with("lent to user space"));
    }
}
