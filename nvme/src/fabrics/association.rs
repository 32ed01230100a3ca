//! One association with a controller: its admin queue and I/O queues, from Connect to the end.
//!
//! Invariants:
//! - An association exists only once the controller is ready and every queue is connected.
//! - Dropping it ends all its connections.

use std::{rc::Rc, time::Duration};

use corebay_core::net::Network;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    connection::{Connection, Link},
    error::Error,
    host::Host,
    loss::Loss,
    options::{ConnectionOptions, ControllerOptions},
    table::{Completion, DEPTH_MAX, Data},
};
use crate::spec::{
    command::{SubmissionEntry, admin},
    fabrics::{self, ADMIN_SQSIZE_MIN, CNTLID_DYNAMIC, ConnectData, ConnectSuccess, PropertySize},
    feature::{NumberOfQueues, fid},
    identify::{IDENTIFY_BYTES, IdentifyController, cns, csi},
    property::{
        self, CAP_CSS_IOCSS, CAP_CSS_NOIOCSS, CAP_CSS_NVM, CC_CSS_ADMIN_ONLY, CC_CSS_ALL,
        CC_CSS_NVM, Cap, Cc, Csts, IOCQES_16, IOSQES_64, Vs,
    },
};

/// In-capsule data that every TCP controller takes on its admin queue (TCP, section 3.3.2.1).
const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;

/// The pause between two looks at CSTS.
const READY_POLL: Duration = Duration::from_millis(10);

/// The first I/O queue.
pub(super) const FIRST_IO_QUEUE: u16 = 1;

/// See the module.
pub(super) struct Association<N: Network> {
    pub(super) admin: Link<N::Stream>,
    pub(super) io: Vec<Link<N::Stream>>,
    /// Where the loss of any of the connections is reported.
    pub(super) loss: Rc<Loss>,
    pub(super) facts: Facts,
}

/// What a controller said about itself when the association was made.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its identifier.
    pub cntlid: u16,
    /// Its capabilities.
    pub cap: Cap,
    /// The version it complies with.
    pub vs: Vs,
    /// Its Identify Controller structure.
    pub identify: Box<IdentifyController>,
    /// The commands in flight at a time on one I/O queue.
    pub depth: u16,
}

impl Facts {
    /// The most bytes of one command's data (MDTS); `None` where there is no limit.
    #[must_use]
    pub fn transfer_bytes_max(&self) -> Option<u64> {
        let shift = 12 + u32::from(self.cap.mpsmin()) + u32::from(self.identify.mdts);
        (self.identify.mdts != 0).then(|| 1u64.checked_shl(shift).unwrap_or(u64::MAX))
    }
}

/// An admin queue's commands, with the controller's time-out.
pub(super) struct Admin<'a, N: Network> {
    pub(super) host: &'a Host<N>,
    pub(super) connection: &'a Connection<N::Stream>,
    pub(super) timeout: Duration,
}

impl<N: Network> Admin<'_, N> {
    pub(super) async fn command(
        &self,
        sqe: &SubmissionEntry,
        data: Data<'_>,
    ) -> Result<Completion, Error> {
        let completion = self.connection.command(sqe, data, Some(self.timeout)).await;
        completion?.ok()
    }

    /// Reads a property of four or eight bytes.
    pub(super) async fn property(&self, offset: u32, size: PropertySize) -> Result<u64, Error> {
        let sqe = fabrics::property_get(offset, size);
        let result = self.command(&sqe, Data::None).await?.result;
        Ok(match size {
            PropertySize::Four => result & u64::from(u32::MAX),
            _ => result,
        })
    }

    pub(super) async fn set_property(
        &self,
        offset: u32,
        size: PropertySize,
        value: u64,
    ) -> Result<(), Error> {
        let sqe = fabrics::property_set(offset, size, value);
        self.command(&sqe, Data::None).await.map(drop)
    }

    pub(super) async fn csts(&self) -> Result<Csts, Error> {
        let value = self.property(property::CSTS, PropertySize::Four).await?;
        Ok(Csts(low_half(value)))
    }

    /// Reads a structure with an Identify command.
    pub(super) async fn identify<T: FromBytes>(
        &self,
        cns: u8,
        nsid: u32,
        csi: u8,
    ) -> Result<Box<T>, Error> {
        let sqe = admin::identify(cns, nsid, csi);
        let buffer = self.host.buffers().allocate(IDENTIFY_BYTES).await;
        let into = std::slice::from_ref(&buffer);
        let completion = self.command(&sqe, Data::In(into)).await?;
        whole(completion, IDENTIFY_BYTES)?;
        let bytes = buffer.bytes();
        match T::read_from_prefix(&bytes) {
            Ok((value, _)) => Ok(Box::new(value)),
            Err(_) => Err(Error::Invalid("larger than an Identify structure")),
        }
    }
}

/// Checks that all data came with a successful completion.
pub(super) fn whole(completion: Completion, expected: usize) -> Result<(), Error> {
    if completion.received as usize == expected {
        return Ok(());
    }
    Err(Error::Short {
        received: completion.received,
        expected: u32::try_from(expected).unwrap_or(u32::MAX),
    })
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the property has four bytes"
)]
fn low_half(value: u64) -> u32 {
    value as u32
}

impl<N: Network> Association<N> {
    /// Connects all queues and makes the controller ready.
    pub(super) async fn establish(
        host: &Host<N>,
        options: &ControllerOptions,
    ) -> Result<Self, Error> {
        let loss = Rc::new(Loss::default());
        let link = open(host, options, &loss, ADMIN_SQSIZE_MIN).await?;
        link.connection()
            .set_in_capsule_bytes(ADMIN_IN_CAPSULE_BYTES);
        let kato = u32::try_from(options.keep_alive.as_millis())
            .map_err(|_| Error::Invalid("a keep-alive time-out beyond 49 days"))?;
        let sqe = fabrics::connect(0, ADMIN_SQSIZE_MIN, 0, kato);
        let cntlid = connect(host, options, &link, &sqe, CNTLID_DYNAMIC).await?;
        let admin = Admin {
            host,
            connection: link.connection(),
            timeout: options.command_timeout,
        };
        let facts = make_ready(&admin, options, cntlid).await?;
        let io = connect_io_queues(&admin, options, &loss, &facts).await?;
        Ok(Self {
            admin: link,
            io,
            loss,
            facts,
        })
    }

    /// Ends all connections, with one reason.
    pub(super) fn end(&self, error: Error) {
        for link in self.io.iter().chain([&self.admin]) {
            link.connection().end(error, None);
        }
    }
}

async fn open<N: Network>(
    host: &Host<N>,
    options: &ControllerOptions,
    loss: &Rc<Loss>,
    depth: u16,
) -> Result<Link<N::Stream>, Error> {
    let connection = ConnectionOptions {
        depth,
        digests: options.digests,
        connect_timeout: options.connect_timeout,
    };
    Connection::open_reporting(host, options.address, &connection, loss.clone()).await
}

/// Sends a Connect command; gives the controller's identifier.
async fn connect<N: Network>(
    host: &Host<N>,
    options: &ControllerOptions,
    link: &Link<N::Stream>,
    sqe: &SubmissionEntry,
    cntlid: u16,
) -> Result<u16, Error> {
    let data = ConnectData::new(
        options.host.id,
        cntlid,
        &options.subsystem,
        &options.host.nqn,
    );
    let mut buffer = host.buffers().allocate(size_of::<ConnectData>()).await;
    buffer.bytes_mut().copy_from_slice(data.as_bytes());
    let from = Data::Out(std::slice::from_ref(&buffer));
    let timeout = Some(options.connect_timeout);
    let completion = link.connection().command(sqe, from, timeout).await?;
    if !completion.status.is_success() {
        return Err(Error::Refused {
            status: completion.status,
            dw0: completion.dw0(),
        });
    }
    let success = ConnectSuccess::from_dw0(completion.dw0());
    if success.atr || success.ascr {
        return Err(Error::Controller(
            "the controller requires authentication, which this host does not do yet",
        ));
    }
    if cntlid != CNTLID_DYNAMIC && success.cntlid != cntlid {
        return Err(Error::Controller(
            "an I/O queue was connected to another controller than asked for",
        ));
    }
    Ok(success.cntlid)
}

/// Enables the controller, waits until it is ready, and asks what it is.
async fn make_ready<N: Network>(
    admin: &Admin<'_, N>,
    options: &ControllerOptions,
    cntlid: u16,
) -> Result<Facts, Error> {
    let cap = Cap(admin.property(property::CAP, PropertySize::Eight).await?);
    let vs = Vs(low_half(
        admin.property(property::VS, PropertySize::Four).await?,
    ));
    let css = match cap.css() {
        css if css & CAP_CSS_NVM != 0 => CC_CSS_NVM,
        css if css & CAP_CSS_IOCSS != 0 => CC_CSS_ALL,
        css if css & CAP_CSS_NOIOCSS != 0 => CC_CSS_ADMIN_ONLY,
        _ => return Err(Error::Controller("the controller has no command set")),
    };
    let cc = Cc::default()
        .with_css(css)
        .with_iosqes(IOSQES_64)
        .with_iocqes(IOCQES_16)
        .with_en(true);
    let value = u64::from(cc.0);
    admin
        .set_property(property::CC, PropertySize::Four, value)
        .await?;
    // CAP.TO has units of 500 ms; 0 would leave no time at all.
    let reactor = admin.host.reactor();
    let deadline = reactor
        .now()
        .plus(Duration::from_millis(500) * u32::from(cap.to().max(1)));
    loop {
        let csts = admin.csts().await?;
        if csts.cfs() {
            return Err(Error::Controller("the controller reports a fatal status"));
        }
        if csts.rdy() {
            break;
        }
        if reactor.now() >= deadline {
            return Err(Error::Controller(
                "the controller did not become ready in the time that it states",
            ));
        }
        reactor.sleep(READY_POLL).await;
    }
    let identify: Box<IdentifyController> = admin.identify(cns::CONTROLLER, 0, csi::NVM).await?;
    let depth = queue_depth(options.depth, cap, &identify);
    Ok(Facts {
        cntlid,
        cap,
        vs,
        identify,
        depth,
    })
}

/// How many commands an I/O queue may have in flight: a queue of `MQES + 1` entries holds `MQES`.
fn queue_depth(asked: u16, cap: Cap, identify: &IdentifyController) -> u16 {
    let outstanding = match identify.maxcmd.get() {
        0 => u16::MAX,
        maxcmd => maxcmd,
    };
    asked.min(cap.mqes()).min(outstanding).clamp(1, DEPTH_MAX)
}

async fn connect_io_queues<N: Network>(
    admin: &Admin<'_, N>,
    options: &ControllerOptions,
    loss: &Rc<Loss>,
    facts: &Facts,
) -> Result<Vec<Link<N::Stream>>, Error> {
    if options.io_queues == 0 {
        return Ok(Vec::new());
    }
    let in_capsule = in_capsule_bytes(&facts.identify)?;
    let asked = NumberOfQueues {
        nsq: options.io_queues - 1,
        ncq: options.io_queues - 1,
    };
    let sqe = admin::set_features(fid::NUMBER_OF_QUEUES, 0, asked.to_dword());
    let granted = admin.command(&sqe, Data::None).await?.dw0();
    let granted = NumberOfQueues::from_dword(granted);
    let count = options
        .io_queues
        .min(granted.nsq.min(granted.ncq).saturating_add(1));
    let mut queues = Vec::with_capacity(usize::from(count));
    for index in 0..count {
        let link = open(admin.host, options, loss, facts.depth).await?;
        // Connect has its data in the capsule whatever IOCCSZ says.
        link.connection()
            .set_in_capsule_bytes(size_of::<ConnectData>() as u32);
        let sqe = fabrics::connect(FIRST_IO_QUEUE + index, facts.depth, 0, 0);
        connect(admin.host, options, &link, &sqe, facts.cntlid).await?;
        link.connection().set_in_capsule_bytes(in_capsule);
        queues.push(link);
    }
    Ok(queues)
}

/// The data that a command capsule of an I/O queue can carry (IOCCSZ less the command).
fn in_capsule_bytes(identify: &IdentifyController) -> Result<u32, Error> {
    let units = identify.ioccsz.get();
    let bytes = units
        .checked_mul(16)
        .and_then(|bytes| bytes.checked_sub(size_of::<SubmissionEntry>() as u32))
        .ok_or(Error::Controller(
            "the controller's I/O command capsules do not hold a command",
        ))?;
    // Over TCP in-capsule data follows the command at once: anything else is not understood.
    Ok(if identify.icdoff.get() == 0 { bytes } else { 0 })
}
