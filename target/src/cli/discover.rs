//! `corebay discover`: prints what a discovery service offers.

use std::process::ExitCode;

use corebay_nvme::{
    fabrics::{ControllerOptions, DiscoveryLog, DiscoveryRecord, discover},
    spec::{
        log::{adrfam, eflags, sectype, subtype, treq, trtype},
        tcp::PORT_DISCOVERY,
    },
};
use serde_json::{Value, json};

use super::{
    Format,
    address::Address,
    failure::Failure,
    session::{self, HostArgs, explain},
    table::Table,
};

/// What `corebay discover` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corebay discover 192.0.2.7             the discovery service on port 8009
  corebay discover 192.0.2.7:4420        the one on another port
  corebay discover -o json [2001:db8::7] | jq '.records[].subnqn'")]
pub struct Args {
    /// Where the discovery service is; port 8009 where none is given
    #[arg(value_name = "ADDRESS[:PORT]", default_value = "127.0.0.1")]
    address: Address,
    #[command(flatten)]
    host: HostArgs,
    /// How the records are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Asks, and prints the answer.
pub fn run(args: &Args) -> ExitCode {
    match ask(args) {
        Ok(log) => {
            match args.output {
                Format::Text => print!("{}", as_text(&log)),
                Format::Json => println!("{:#}", as_json(&log)),
            }
            ExitCode::SUCCESS
        }
        Err(failure) => failure.report("discover"),
    }
}

fn ask(args: &Args) -> Result<DiscoveryLog, Failure> {
    let address = args.address.resolve(PORT_DISCOVERY)?;
    let mut options = ControllerOptions::discovery(address, args.host.identity()?);
    options.digests = args.host.digests();
    session::run(move |host| async move {
        let log = discover(&host, options).await;
        log.map_err(|error| explain("read the discovery log", address, &error))
    })
}

fn as_text(log: &DiscoveryLog) -> String {
    if log.records.is_empty() {
        return "nothing is offered to this host\n".to_owned();
    }
    let mut table = Table::new(&["TRANSPORT", "ADDRESS", "PORT", "TYPE", "ID", "SUBSYSTEM"]);
    for record in &log.records {
        table.row(vec![
            transport(record).to_owned(),
            record.traddr.clone(),
            record.trsvcid.clone(),
            kind(record).to_owned(),
            record.entry.portid.to_string(),
            record.subnqn.clone(),
        ]);
    }
    table.to_string()
}

fn as_json(log: &DiscoveryLog) -> Value {
    let records: Vec<Value> = log.records.iter().map(record_as_json).collect();
    json!({ "generation": log.generation, "records": records })
}

fn record_as_json(record: &DiscoveryRecord) -> Value {
    let entry = &record.entry;
    let family = match entry.adrfam {
        adrfam::IPV4 => "ipv4",
        adrfam::IPV6 => "ipv6",
        adrfam::INFINIBAND => "infiniband",
        adrfam::FC => "fc",
        adrfam::LOOP => "loop",
        _ => "other",
    };
    let secure = match entry.treq & treq::SECURE_CHANNEL_MASK {
        treq::SECURE_CHANNEL_REQUIRED => "required",
        treq::SECURE_CHANNEL_NOT_REQUIRED => "not required",
        _ => "not specified",
    };
    let security = match entry.tsas[0] {
        sectype::NONE => "none",
        sectype::TLS_1_2 => "tls1.2",
        sectype::TLS_1_3 => "tls1.3",
        _ => "other",
    };
    let flags = entry.eflags.get();
    json!({
        "trtype": transport(record),
        "adrfam": family,
        "subtype": kind(record),
        "subnqn": record.subnqn,
        "traddr": record.traddr,
        "trsvcid": record.trsvcid,
        "portid": entry.portid.get(),
        "cntlid": entry.cntlid.get(),
        "asqsz": entry.asqsz.get(),
        "secure_channel": secure,
        "sq_flow_control_can_be_disabled": entry.treq & treq::DISABLE_SQ_FLOW_CONTROL != 0,
        "sectype": (entry.trtype == trtype::TCP).then_some(security),
        "duplicate_information": flags & eflags::DUPLICATE_INFORMATION != 0,
        "persistent_connections": flags & eflags::PERSISTENT_CONNECTIONS != 0,
    })
}

fn transport(record: &DiscoveryRecord) -> &'static str {
    match record.entry.trtype {
        trtype::TCP => "tcp",
        trtype::RDMA => "rdma",
        trtype::FC => "fc",
        trtype::LOOP => "loop",
        _ => "other",
    }
}

fn kind(record: &DiscoveryRecord) -> &'static str {
    match record.entry.subtype {
        subtype::NVM => "nvm",
        subtype::REFERRAL => "referral",
        subtype::CURRENT_DISCOVERY => "discovery",
        _ => "other",
    }
}
