//! `corebay id`: prints what a controller and its namespaces say about themselves.

use std::{fmt::Write, process::ExitCode};

use corebay_nvme::{
    fabrics::{Controller, ControllerOptions, Facts, Namespace},
    spec::{
        ascii,
        identify::{
            NamespaceIdentifier,
            controller::{cntrltype, ctratt, fuses, oacs, oncs, vwc},
        },
        nqn::{self, Nqn},
        property::Vs,
        tcp::PORT_IO,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Format,
    address::Address,
    failure::Failure,
    session::{self, HostArgs, explain},
};

/// What `corebay id` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corebay id                             the only subsystem on 127.0.0.1:4420
  corebay id 192.0.2.7 --nqn nqn.2024-01.com.example:disks --nsid 2
  corebay id -o json | jq .controller.mdts_bytes")]
pub struct Args {
    /// Where the subsystem is; port 4420 where none is given
    #[arg(value_name = "ADDRESS[:PORT]", default_value = "127.0.0.1")]
    address: Address,
    /// The subsystem [default: the only one that discovery at the address reports]
    #[arg(long, value_name = "NQN")]
    nqn: Option<Nqn>,
    /// Only this namespace
    #[arg(long, value_name = "NSID")]
    nsid: Option<u32>,
    #[command(flatten)]
    host: HostArgs,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What was found out.
struct Found {
    facts: Facts,
    namespaces: Vec<Namespace>,
}

/// Asks, and prints the answer.
pub fn run(args: &Args) -> ExitCode {
    match ask(args) {
        Ok(found) => {
            match args.output {
                Format::Text => print!("{}", as_text(&found)),
                Format::Json => println!("{:#}", as_json(&found)),
            }
            ExitCode::SUCCESS
        }
        Err(failure) => failure.report("id"),
    }
}

fn ask(args: &Args) -> Result<Found, Failure> {
    let address = args.address.resolve(PORT_IO)?;
    let identity = args.host.identity()?;
    let (named, nsid, digests) = (args.nqn.clone(), args.nsid, args.host.digests());
    session::run(move |host| async move {
        let (nqn, address) = match named {
            Some(nqn) => (nqn, address),
            None => session::only_subsystem(&host, address, &identity).await?,
        };
        let failed = |what: &str, error| explain(what, address, &error);
        let mut options = ControllerOptions::new(address, nqn, identity);
        options.io_queues = 0;
        options.digests = digests;
        let controller = Controller::connect(&host, options).await;
        let controller = controller.map_err(|error| failed("connect to the subsystem", error))?;
        let facts = controller
            .facts()
            .map_err(|error| failed("identify the controller", error))?;
        let nsids = match nsid {
            Some(nsid) => vec![nsid],
            None => controller
                .active_namespaces()
                .await
                .map_err(|error| failed("list the namespaces", error))?,
        };
        let mut namespaces = Vec::new();
        for nsid in nsids {
            let namespace = controller.namespace(nsid).await;
            let what = format!("identify namespace {nsid}");
            namespaces.push(namespace.map_err(|error| failed(&what, error))?);
        }
        // The answers are there: how the controller ends is its own affair.
        let _ = controller.shutdown().await;
        Ok(Found { facts, namespaces })
    })
}

/// The names of the bits that are set.
fn names(bits: u32, known: &[(u32, &'static str)]) -> Vec<&'static str> {
    known
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect()
}

fn commands(facts: &Facts) -> Vec<&'static str> {
    let identify = &facts.identify;
    let mut found = names(
        u32::from(identify.oncs.get()),
        &[
            (oncs::COMPARE.into(), "compare"),
            (oncs::WRITE_UNCORRECTABLE.into(), "write-uncorrectable"),
            (oncs::DATASET_MANAGEMENT.into(), "dataset-management"),
            (oncs::WRITE_ZEROES.into(), "write-zeroes"),
            (oncs::RESERVATIONS.into(), "reservations"),
            (oncs::TIMESTAMP.into(), "timestamp"),
            (oncs::VERIFY.into(), "verify"),
            (oncs::COPY.into(), "copy"),
        ],
    );
    if identify.fuses.get() & fuses::COMPARE_AND_WRITE != 0 {
        found.push("compare-and-write");
    }
    if identify.oacs.get() & oacs::NAMESPACE_MANAGEMENT != 0 {
        found.push("namespace-management");
    }
    found
}

fn as_json(found: &Found) -> Value {
    let namespaces: Vec<Value> = found.namespaces.iter().map(namespace_as_json).collect();
    json!({ "controller": controller_as_json(&found.facts), "namespaces": namespaces })
}

fn controller_as_json(facts: &Facts) -> Value {
    let identify = &facts.identify;
    json!({
        "subnqn": nqn::field_text(&identify.subnqn).unwrap_or_default(),
        "model": ascii::trim(&identify.mn),
        "serial": ascii::trim(&identify.sn),
        "firmware": ascii::trim(&identify.fr),
        "cntlid": facts.cntlid,
        "version": facts.vs.to_string(),
        "type": controller_type(identify.cntrltype),
        "mdts_bytes": facts.transfer_bytes_max(),
        "queue_entries_max": u32::from(facts.cap.mqes()) + 1,
        "commands_outstanding_max": identify.maxcmd.get(),
        "in_capsule_bytes": (identify.ioccsz.get() * 16).saturating_sub(64),
        "keep_alive_granularity_ms": u32::from(identify.kas.get()) * 100,
        "traffic_based_keep_alive": identify.ctratt.get() & ctratt::TRAFFIC_KEEP_ALIVE != 0,
        "namespaces_max": identify.nn.get(),
        "volatile_write_cache": identify.vwc & vwc::PRESENT != 0,
        "optional_commands": commands(facts),
        "async_event_requests_max": u16::from(identify.aerl) + 1,
        "aborts_max": u16::from(identify.acl) + 1,
        "total_capacity_bytes": u128::from_le_bytes(identify.tnvmcap).to_string(),
        "raw": {
            "cap": facts.cap.0, "vid": identify.vid.get(), "cmic": identify.cmic,
            "oaes": identify.oaes.get(), "ctratt": identify.ctratt.get(),
            "oacs": identify.oacs.get(), "lpa": identify.lpa, "oncs": identify.oncs.get(),
            "fuses": identify.fuses.get(), "vwc": identify.vwc, "sgls": identify.sgls.get(),
            "awun": identify.awun.get(), "awupf": identify.awupf.get(),
            "acwu": identify.acwu.get(), "anacap": identify.anacap,
            "fcatt": identify.fcatt, "ofcs": identify.ofcs.get(),
        },
    })
}

fn namespace_as_json(namespace: &Namespace) -> Value {
    let identify = &namespace.identify;
    let (uuid, nguid, eui64) = identifiers(namespace);
    json!({
        "nsid": namespace.nsid,
        "block_bytes": namespace.block_bytes,
        "metadata_bytes": namespace.metadata_bytes,
        "blocks": namespace.blocks,
        "capacity_blocks": identify.ncap.get(),
        "used_blocks": identify.nuse.get(),
        "bytes": u128::from(namespace.blocks) * u128::from(namespace.block_bytes),
        "uuid": uuid,
        "nguid": nguid,
        "eui64": eui64,
        "raw": {
            "nsfeat": identify.nsfeat, "flbas": identify.flbas, "nmic": identify.nmic,
            "rescap": identify.rescap, "dlfeat": identify.dlfeat,
            "nawun": identify.nawun.get(), "nawupf": identify.nawupf.get(),
            "nacwu": identify.nacwu.get(), "npwg": identify.npwg.get(),
            "npwa": identify.npwa.get(), "npdg": identify.npdg.get(),
            "npda": identify.npda.get(), "nows": identify.nows.get(),
            "mssrl": identify.mssrl.get(), "mcl": identify.mcl.get(), "msrc": identify.msrc,
            "anagrpid": identify.anagrpid.get(), "nsattr": identify.nsattr,
        },
    })
}

/// UUID, NGUID and EUI-64, as far as the namespace has them.
fn identifiers(namespace: &Namespace) -> (Option<String>, Option<String>, Option<String>) {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(String::new(), |all, b| all + &format!("{b:02x}"))
    };
    let (mut uuid, mut nguid, mut eui64) = (None, None, None);
    for identifier in &namespace.identifiers {
        match identifier {
            NamespaceIdentifier::Uuid(bytes) => uuid = Some(Uuid::from_bytes(*bytes).to_string()),
            NamespaceIdentifier::Nguid(bytes) => nguid = Some(hex(bytes)),
            NamespaceIdentifier::Eui64(bytes) => eui64 = Some(hex(bytes)),
            NamespaceIdentifier::Csi(_) => {}
        }
    }
    (uuid, nguid, eui64)
}

fn controller_type(value: u8) -> &'static str {
    match value {
        cntrltype::IO => "I/O",
        cntrltype::DISCOVERY => "discovery",
        cntrltype::ADMIN => "administrative",
        _ => "not reported",
    }
}

fn as_text(found: &Found) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<22}{value}");
    };
    let facts = &found.facts;
    let identify = &facts.identify;
    let subsystem = nqn::field_text(&identify.subnqn).unwrap_or("(none given)");
    line("subsystem", subsystem.to_owned());
    line("model", ascii::trim(&identify.mn));
    line("serial", ascii::trim(&identify.sn));
    line("firmware", ascii::trim(&identify.fr));
    let kind = controller_type(identify.cntrltype);
    line("controller", format!("{} ({kind})", facts.cntlid));
    line("NVMe version", Vs(identify.ver.get()).to_string());
    let transfer = match facts.transfer_bytes_max() {
        Some(bytes) => size(u128::from(bytes)),
        None => "no limit".to_owned(),
    };
    line("largest transfer", transfer);
    let entries = u32::from(facts.cap.mqes()) + 1;
    line("queue entries", format!("at most {entries}"));
    let in_capsule = (identify.ioccsz.get() * 16).saturating_sub(64);
    line("in-capsule data", size(u128::from(in_capsule)));
    let keep_alive = match identify.kas.get() {
        0 => "not supported".to_owned(),
        units => format!("every {} ms or more", u32::from(units) * 100),
    };
    line("keep-alive", keep_alive);
    let cached = identify.vwc & vwc::PRESENT != 0;
    line(
        "write cache",
        if cached { "volatile" } else { "none" }.to_owned(),
    );
    line("optional commands", commands(facts).join(" "));
    line(
        "namespaces",
        format!(
            "{} (NSIDs to {})",
            found.namespaces.len(),
            identify.nn.get()
        ),
    );
    for namespace in &found.namespaces {
        text.push('\n');
        namespace_as_text(namespace, &mut text);
    }
    text
}

fn namespace_as_text(namespace: &Namespace, text: &mut String) {
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<22}{value}");
    };
    let bytes = |blocks: u64| size(u128::from(blocks) * u128::from(namespace.block_bytes));
    line("namespace", namespace.nsid.to_string());
    let block = namespace.block_bytes;
    let blocks = namespace.blocks;
    line(
        "  size",
        format!("{} ({blocks} blocks of {block} B)", bytes(blocks)),
    );
    line("  used", bytes(namespace.identify.nuse.get()));
    if namespace.metadata_bytes > 0 {
        line(
            "  metadata",
            format!("{} B a block", namespace.metadata_bytes),
        );
    }
    let (uuid, nguid, eui64) = identifiers(namespace);
    for (name, value) in [("  UUID", uuid), ("  NGUID", nguid), ("  EUI-64", eui64)] {
        if let Some(value) = value {
            line(name, value);
        }
    }
}

/// Bytes for people, in binary units.
pub fn size(bytes: u128) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (0..UNITS.len() - 1)
        .find(|unit| bytes >> (10 * (unit + 1)) == 0)
        .unwrap_or(UNITS.len() - 1);
    let whole = bytes >> (10 * unit);
    let exact = whole << (10 * unit) == bytes;
    if exact {
        return format!("{whole} {}", UNITS[unit]);
    }
    let tenths = (bytes * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(8 << 30), "8 GiB");
        assert_eq!(size((8 << 30) + (1 << 29)), "8.5 GiB");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(u128::from(u64::MAX)), "15.9 EiB");
    }
}
