//! `[[subsystem]]` and `[[subsystem.namespace]]`.

use uuid::Uuid;

use super::scalars;
use crate::appliance::{Eui64, Model, Nguid, Serial};
use crate::diagnostic::{Draft, Span};
use crate::limits;
use crate::reader::{At, Field, Section};
use corebay_nvme::spec::nqn::Nqn;

const MODEL_DEFAULT: &str = "corebay";

/// `[[subsystem]]` by itself.
pub(crate) struct RawSubsystem {
    pub(crate) nqn: Field<Nqn>,
    pub(crate) serial: Field<Serial>,
    pub(crate) model: Model,
    pub(crate) access: RawAccess,
    /// Names of listeners.
    pub(crate) listeners: Field<Vec<At<String>>>,
    pub(crate) max_namespaces: At<u32>,
    pub(crate) namespaces: Vec<RawNamespace>,
    /// Of the whole subsystem.
    pub(crate) span: Span,
}

/// Who may connect, by itself.
pub(crate) struct RawAccess {
    pub(crate) any_host: Field<bool>,
    pub(crate) hosts: Field<Vec<At<Nqn>>>,
}

/// `[[subsystem.namespace]]` by itself.
pub(crate) struct RawNamespace {
    pub(crate) nsid: Field<u32>,
    /// The name of a disk.
    pub(crate) disk: Field<String>,
    /// The names of a pool and a volume of it, as in `pool/volume`.
    pub(crate) volume: Field<String>,
    pub(crate) uuid: Field<Uuid>,
    pub(crate) nguid: Field<Nguid>,
    pub(crate) eui64: Field<Eui64>,
    pub(crate) read_only: bool,
    /// Of the whole namespace.
    pub(crate) span: Span,
}

/// Reads one `[[subsystem]]`.
pub(crate) fn read(mut section: Section<'_, '_>) -> RawSubsystem {
    let nqn = section.parsed("nqn", "an NQN", scalars::nqn);
    if nqn.is_absent() {
        section.missing("nqn", "nqn = \"nqn.2024-01.com.example:disk-1\"");
    }
    let any_host = section.boolean("allow_any_host");
    let title = "[[subsystem.namespace]]";
    let raw = RawSubsystem {
        nqn,
        serial: section.parsed("serial", "a serial number", scalars::serial),
        model: section
            .parsed("model", "a model number", scalars::model)
            .or(Model(MODEL_DEFAULT.to_owned())),
        access: RawAccess {
            any_host,
            hosts: hosts(&mut section),
        },
        listeners: listeners(&mut section),
        max_namespaces: max_namespaces(&mut section),
        namespaces: section.tables("namespace", title, limits::NAMESPACES_MAX, read_namespace),
        span: section.span,
    };
    section.finish();
    raw
}

/// The default of `model`, for a subsystem that no file describes.
pub(crate) fn default_model() -> Model {
    Model(MODEL_DEFAULT.to_owned())
}

fn hosts(section: &mut Section<'_, '_>) -> Field<Vec<At<Nqn>>> {
    const EXPECTED: &str = "a list of host NQNs";
    let list = match section.list("hosts", EXPECTED) {
        Field::Absent => return Field::Absent,
        Field::Wrong => return Field::Wrong,
        Field::Given(list) => list,
    };
    if list.value.len() > limits::HOSTS_MAX {
        let label = format!(
            "{}: expected at most {}",
            list.value.len(),
            limits::HOSTS_MAX
        );
        section
            .sink
            .push(Draft::error("these are too many hosts").at(list.span, label));
    }
    let mut hosts = Vec::new();
    let mut all_right = true;
    for node in list.value.into_iter().take(limits::HOSTS_MAX) {
        let Field::Given(text) = section.element_text("hosts", node, EXPECTED) else {
            all_right = false;
            continue;
        };
        match scalars::nqn(text.value) {
            Ok(nqn) => hosts.push(At {
                value: nqn,
                span: text.span,
            }),
            Err(refusal) => {
                let _: Field<()> = section.refuse(text.span, "the NQN of a host", refusal);
                all_right = false;
            }
        }
    }
    match all_right {
        true => Field::Given(At {
            value: hosts,
            span: list.span,
        }),
        false => Field::Wrong,
    }
}

fn listeners(section: &mut Section<'_, '_>) -> Field<Vec<At<String>>> {
    const EXPECTED: &str = "a list of names of listeners";
    let list = match section.list("listeners", EXPECTED) {
        Field::Absent => return Field::Absent,
        Field::Wrong => return Field::Wrong,
        Field::Given(list) => list,
    };
    let names = list
        .value
        .into_iter()
        .map(|node| section.element_text("listeners", node, EXPECTED));
    let names: Vec<Field<&str>> = names.collect();
    let given = names.iter().filter_map(Field::given);
    let given = given
        .map(|at| At {
            value: at.value.to_owned(),
            span: at.span,
        })
        .collect();
    Field::Given(At {
        value: given,
        span: list.span,
    })
}

fn max_namespaces(section: &mut Section<'_, '_>) -> At<u32> {
    let count = section.integer("max_namespaces", 1..=limits::NAMESPACES_MAX as u64);
    count
        .map(|count| u32::try_from(count).unwrap_or(u32::MAX))
        .or_at(limits::NAMESPACES_MAX as u32)
}

fn read_namespace(mut section: Section<'_, '_>) -> RawNamespace {
    let nsid = section.integer("nsid", 1..=limits::NAMESPACES_MAX as u64);
    let raw = RawNamespace {
        nsid: nsid.map(|nsid| u32::try_from(nsid).unwrap_or(u32::MAX)),
        disk: section
            .text("disk", "the name of a disk")
            .map(str::to_owned),
        volume: section
            .text("volume", "the name of a volume, as in \"pool/volume\"")
            .map(str::to_owned),
        uuid: section.parsed("uuid", "a UUID", scalars::uuid),
        nguid: section.parsed("nguid", "an NGUID", scalars::nguid),
        eui64: section.parsed("eui64", "an EUI-64", scalars::eui64),
        read_only: section.boolean("read_only").or(false),
        span: section.span,
    };
    if raw.disk.is_absent() && raw.volume.is_absent() {
        section.missing("disk", "disk = \"disk-1\"");
    }
    section.finish();
    raw
}
