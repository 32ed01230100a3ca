//! `corebay array`: looks at the arrays of a running appliance, and changes them, by its control socket.

use std::{process::ExitCode, time::Duration};

use serde_json::{Value, json};

use super::{
    Failure, Format,
    client::{Asking, Client, word},
    table::Table,
};

/// What `corebay array` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corebay array list
  corebay array status bulk --watch      members, and how far a rebuild or a scrub is
  corebay array scrub bulk
  corebay array replace bulk 3 bay-9     gives the failed role 3 to the disk bay-9")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the arrays
    List,
    /// Say how an array is
    Status {
        /// Its name
        array: String,
        /// Say it again every second until nothing is under way
        #[arg(long)]
        watch: bool,
    },
    /// Read everything, and make agree what does not
    Scrub {
        /// The array
        array: String,
    },
    /// Give up a member, as if it had failed; refused where blocks would be lost
    Fail {
        /// The array
        array: String,
        /// A role or a disk
        member: String,
    },
    /// Give the role of a failed member to another disk, which has to be blank
    Replace {
        /// The array
        array: String,
        /// A role or a disk
        member: String,
        /// The new disk, as the configuration calls it
        disk: String,
    },
    /// Let a blank disk step in for the next member that fails
    Spare {
        /// The array
        array: String,
        /// The disk, as the configuration calls it
        disk: String,
    },
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("array"),
    }
}

fn act(args: &Args) -> Result<(), Failure> {
    let mut client = Client::connect(&args.asking)?;
    let (method, params) = match &args.action {
        Action::List => ("list", json!({})),
        Action::Status { array, .. } => ("status", json!({ "array": array })),
        Action::Scrub { array } => ("scrub", json!({ "array": array })),
        Action::Fail { array, member } => ("fail", json!({ "array": array, "member": member })),
        Action::Replace {
            array,
            member,
            disk,
        } => (
            "replace",
            json!({ "array": array, "member": member, "disk": disk }),
        ),
        Action::Spare { array, disk } => ("spare", json!({ "array": array, "disk": disk })),
    };
    let watch = matches!(args.action, Action::Status { watch: true, .. });
    loop {
        let result = client.call(&format!("array.{method}"), &params)?;
        match (args.asking.output, &args.action) {
            (Format::Json, _) => println!("{result:#}"),
            (_, Action::List) => print!("{}", list(&result)),
            (_, Action::Status { .. }) => print!("{}", status(&result)),
            _ => println!("done"),
        }
        if !watch || result["sweep"].is_null() {
            return Ok(());
        }
        pause();
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the command line waits by the machine's clock"
)]
fn pause() {
    std::thread::sleep(Duration::from_secs(1));
}

fn gib(bytes: &Value) -> String {
    format!(
        "{:.2}GiB",
        bytes.as_f64().unwrap_or(0.0) / (1u64 << 30) as f64
    )
}

fn list(arrays: &Value) -> String {
    let mut table = Table::new(&["ARRAY", "LEVEL", ">SIZE", "STATE", "UNDER WAY"]);
    for array in arrays.as_array().into_iter().flatten() {
        table.row(vec![
            word(&array["name"]),
            word(&array["level"]),
            gib(&array["bytes"]),
            word(&array["state"]),
            sweep(&array["sweep"]),
        ]);
    }
    table.to_string()
}

fn sweep(sweep: &Value) -> String {
    if sweep.is_null() {
        return "-".to_owned();
    }
    let number = |key: &str| sweep[key].as_f64().unwrap_or(0.0);
    let percent = 100.0 * number("done_bytes") / number("total_bytes").max(1.0);
    let rate = number("bytes_per_second") / f64::from(1 << 20);
    let left = match sweep["seconds_left"].as_u64() {
        Some(seconds) => format!(
            "{}:{:02}:{:02} left",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
        None => "time left unknown".to_owned(),
    };
    format!(
        "{} {percent:.1}%, {rate:.1} MiB/s, {left}",
        word(&sweep["kind"])
    )
}

fn status(array: &Value) -> String {
    let mut text = format!(
        "{}: {}, {}, {}\n  uuid {}, strip {} bytes, {}\n  under way: {}\n",
        word(&array["name"]),
        word(&array["level"]),
        gib(&array["bytes"]),
        word(&array["state"]),
        word(&array["uuid"]),
        word(&array["strip_bytes"]),
        word(&array["consistency"]),
        sweep(&array["sweep"]),
    );
    let mut table = Table::new(&[">ROLE", "DISK", "STATE"]);
    for member in array["members"].as_array().into_iter().flatten() {
        table.row(vec![
            word(&member["role"]),
            word(&member["disk"]),
            word(&member["state"]),
        ]);
    }
    text += &table.to_string();
    for spare in array["spares"].as_array().into_iter().flatten() {
        text += &format!("spare {}\n", word(spare));
    }
    for refused in array["refused"].as_array().into_iter().flatten() {
        text += &format!(
            "refused {}: {}\n",
            word(&refused["disk"]),
            word(&refused["why"])
        );
    }
    if !array["scrubbed"].is_null() {
        text += &format!("last scrub: {}\n", array["scrubbed"]);
    }
    text
}
