//! `corebay drives show`: how a drive is, asked of whoever has it: a running appliance, the kernel's
//! driver, or nobody, and then the drive itself.

use std::path::Path;

use corebay_nvme::{
    machine::{drives, passthrough},
    pcie::{DriveReport, DriverOptions},
};
use serde_json::{Value, json};

use super::{
    super::{
        Failure,
        client::{Asking, Client, word},
    },
    alone, size,
};
use crate::appliance::health_as_json;

/// What a drive says of itself.
pub fn ask(asking: &Asking, address: &str) -> Result<Value, Failure> {
    let root = Path::new("/");
    let all = drives(root);
    let drive = all.iter().find(|drive| drive.address == address);
    if let Some(known) = of_appliance(asking, address)? {
        return Ok(known);
    }
    let drive = drive.ok_or_else(|| {
        let help = "`corebay drives` lists the drives";
        Failure::new(format!("there is no NVMe drive at {address}"), help)
    })?;
    let report = match drive.is_lent() {
        true => of_drive(address)?,
        false => passthrough::report(root, address).map_err(|error| {
            let help = "run it as root; a drive without a driver is bound by `corebay drives bind`";
            Failure::new(format!("the drive at {address}: {error}"), help)
        })?,
    };
    Ok(health_as_json(address, &report))
}

/// From an appliance that runs and has the drive.
fn of_appliance(asking: &Asking, address: &str) -> Result<Option<Value>, Failure> {
    let mut client = match Client::connect(asking) {
        Ok(client) => client,
        Err(failure) if asking.control.is_some() => return Err(failure),
        Err(_) => return Ok(None),
    };
    let known = client.call("drive.list", &json!({}))?;
    let mut known = known.as_array().into_iter().flatten();
    if !known.any(|drive| drive["address"] == address) {
        return Ok(None);
    }
    client
        .call("drive.show", &json!({ "drive": address }))
        .map(Some)
}

/// From the drive itself, which nobody uses.
fn of_drive(address: &str) -> Result<DriveReport, Failure> {
    let options = DriverOptions {
        entries: 32,
        ..DriverOptions::default()
    };
    alone::with(address, options, 0, |alone| async move {
        let report = alone.controller.report().await;
        report.map_err(|error| error.to_string())
    })
}

/// What a drive says, for people.
pub fn as_text(drive: &Value) -> String {
    let health = &drive["health"];
    let number = |key: &str| health[key].as_u64().unwrap_or(0);
    let slots = list(&drive["firmware_slots"], &slot);
    let warnings = list(&health["warnings"], &word);
    let good = if warnings.is_empty() { "good" } else { "" };
    let mut lines = vec![
        ("health", good.to_owned() + &warnings.join(", ")),
        ("temperature", temperature(health)),
        (
            "spare",
            format!(
                "{}% (warns below {}%)",
                number("spare_percent"),
                number("spare_threshold_percent")
            ),
        ),
        ("life used", format!("{}%", number("used_percent"))),
        ("media errors", number("media_errors").to_string()),
        (
            "error log",
            format!("{} entries", number("error_log_entries")),
        ),
        (
            "read",
            format!(
                "{} in {} commands",
                size(number("read_bytes")),
                number("reads")
            ),
        ),
        (
            "written",
            format!(
                "{} in {} commands",
                size(number("written_bytes")),
                number("writes")
            ),
        ),
        (
            "powered",
            format!(
                "{} hours, {} times on, {} times off without a shutdown",
                number("power_on_hours"),
                number("power_cycles"),
                number("unsafe_shutdowns")
            ),
        ),
        ("firmware", slots.join(", ")),
    ];
    if let Some(resets) = drive["resets"].as_u64() {
        lines.push(("resets", format!("{resets} since it was brought up")));
    }
    let mut text = format!(
        "{}: {}, serial {}, firmware {}\n",
        word(&drive["address"]),
        word(&drive["model"]),
        word(&drive["serial"]),
        word(&drive["firmware"])
    );
    for (what, how) in lines {
        text += &format!("  {what:<13} {how}\n");
    }
    text
}

fn list(value: &Value, each: &dyn Fn(&Value) -> String) -> Vec<String> {
    value.as_array().into_iter().flatten().map(each).collect()
}

fn temperature(health: &Value) -> String {
    let celsius = |key: &str| health[key].as_i64().map(|celsius| format!("{celsius} C"));
    let mut notes = Vec::new();
    notes.extend(celsius("celsius_warning").map(|at| format!("warns at {at}")));
    notes.extend(celsius("celsius_critical").map(|at| format!("critical at {at}")));
    notes.extend(list(&health["sensors"], &|one| {
        format!("sensor {} {} C", one["sensor"], one["celsius"])
    }));
    let now = celsius("celsius").unwrap_or_else(|| "unknown".into());
    match notes.is_empty() {
        true => now,
        false => format!("{now} ({})", notes.join(", ")),
    }
}

fn slot(slot: &Value) -> String {
    let mut notes = Vec::new();
    for (key, note) in [
        ("active", "runs"),
        ("next", "from the next reset on"),
        ("read_only", "read only"),
    ] {
        if slot[key] == true {
            notes.push(note);
        }
    }
    let revision = slot["revision"].as_str().unwrap_or("empty");
    match notes.is_empty() {
        true => format!("slot {} {revision}", slot["slot"]),
        false => format!("slot {} {revision} ({})", slot["slot"], notes.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_its_line() {
        let drive = json!({
            "address": "0000:01:00.0", "model": "Model X", "serial": "S1", "firmware": "2.1",
            "resets": 1,
            "firmware_slots": [
                { "slot": 1, "revision": "1.0", "active": false, "next": true, "read_only": true },
                { "slot": 2, "revision": "2.1", "active": true, "next": false, "read_only": false },
                { "slot": 3, "revision": null, "active": false, "next": false, "read_only": false },
            ],
            "health": {
                "warnings": ["spare capacity is low"], "celsius": 41, "celsius_warning": 70,
                "sensors": [{ "sensor": 2, "celsius": 44 }], "spare_percent": 4,
                "spare_threshold_percent": 10, "media_errors": 7, "written_bytes": 1_024_000,
                "writes": 3,
            },
        });
        let text = as_text(&drive);
        for line in [
            "0000:01:00.0: Model X, serial S1, firmware 2.1",
            "health        spare capacity is low",
            "temperature   41 C (warns at 70 C, sensor 2 44 C)",
            "spare         4% (warns below 10%)",
            "media errors  7",
            "written       1.02 MB in 3 commands",
            "slot 1 1.0 (from the next reset on, read only), slot 2 2.1 (runs), slot 3 empty",
            "resets        1 since it was brought up",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
