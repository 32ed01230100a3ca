//! What a drive says of its health and its firmware, as programs read it; the same whoever asked it.

use corebay_nvme::pcie::DriveReport;
use serde_json::{Value, json};

/// A report as JSON.
pub fn as_json(address: &str, report: &DriveReport) -> Value {
    let (health, slots) = (&report.health, &report.slots);
    let sensors = health.sensors.iter();
    let sensors: Vec<_> = sensors
        .map(|(number, celsius)| json!({ "sensor": number, "celsius": celsius }))
        .collect();
    let revisions = (1..).zip(&slots.revisions);
    let revisions: Vec<_> = revisions
        .map(|(slot, revision)| {
            json!({
                "slot": slot,
                "revision": revision,
                "active": slot == slots.active,
                "next": Some(slot) == slots.next,
                "read_only": slot == 1 && slots.first_read_only,
            })
        })
        .collect();
    json!({
        "address": address,
        "model": report.model,
        "serial": report.serial,
        "firmware": report.firmware,
        "firmware_slots": revisions,
        "health": {
            "warnings": health.warnings,
            "celsius": health.temperature,
            "celsius_warning": health.temperature_warning,
            "celsius_critical": health.temperature_critical,
            "sensors": sensors,
            "spare_percent": health.spare_percent,
            "spare_threshold_percent": health.spare_threshold_percent,
            "used_percent": health.used_percent,
            "read_bytes": health.read_bytes,
            "written_bytes": health.written_bytes,
            "reads": health.reads,
            "writes": health.writes,
            "busy_minutes": health.busy_minutes,
            "power_cycles": health.power_cycles,
            "power_on_hours": health.power_on_hours,
            "unsafe_shutdowns": health.unsafe_shutdowns,
            "media_errors": health.media_errors,
            "error_log_entries": health.error_log_entries,
        },
    })
}
