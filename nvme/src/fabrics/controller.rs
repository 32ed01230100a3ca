//! A controller as a host sees it: connected, lost and connected again, until it is closed.
//!
//! Ownership: a [`Controller`] owns its association, and belongs to one core. Dropping it ends all
//! connections; [`Controller::shutdown`] before that lets the controller end in order. [`IoQueue`]s
//! and futures outlive it and then fail with [`Error::Closed`].
//!
//! Invariants:
//! - One task supervises the association: when one connection is lost, it ends all of them, and
//!   makes a new association where the options say so. Nothing else replaces an association.
//! - A command completes once. It is sent again only by the one future that waits for it, after its
//!   connection has ended, and only where [`LostCommands::Replay`] allows it.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::pin,
    rc::{Rc, Weak},
    task::Poll,
    time::Duration,
};

use corebay_core::{net::Network, sync::FifoWait};

use super::{
    association::{Admin, Association, FIRST_IO_QUEUE, Facts},
    connection::Connection,
    error::Error,
    host::Host,
    loss::Loss,
    options::{ControllerOptions, LostCommands, Recovery},
    queue::IoQueue,
    table::{Completion, Data},
    wire::Digests,
};
use crate::spec::{
    command::{SubmissionEntry, admin},
    fabrics::PropertySize,
    property::{self, Cc, Shn, Shst},
};

/// The tasks that may wait for a new association before their queue grows.
const WAITERS: usize = 1024;

/// How often one command is sent again before its connections' losses are its own failure.
const REPLAYS_MAX: u32 = 8;

/// How long an orderly shutdown may take where the controller does not say (RTD3E is 0).
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest that a controller is given for it, whatever it says.
const SHUTDOWN_TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// The pause between two looks at a shutdown's state.
const SHUTDOWN_POLL: Duration = Duration::from_millis(10);

enum State<N: Network> {
    Live(Association<N>),
    /// Lost, and being connected again.
    Recovering,
    /// Lost for good, or closed.
    Ended(Error),
}

pub(super) struct Inner<N: Network> {
    pub(super) host: Rc<Host<N>>,
    pub(super) options: ControllerOptions,
    state: RefCell<State<N>>,
    /// Tasks that wait until the state is no longer `Recovering`.
    changed: FifoWait,
    closed: Cell<bool>,
    associations: Cell<u64>,
}

/// See the module.
pub struct Controller<N: Network> {
    inner: Rc<Inner<N>>,
}

/// Which of an association's queues a command goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueIndex {
    Admin,
    Io(u16),
}

impl<N: Network> Drop for Controller<N> {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl<N: Network> Controller<N> {
    /// Connects to a controller: admin queue, readiness, identification, I/O queues.
    ///
    /// # Errors
    /// Why that failed, or [`Error::Invalid`] where the reactor has no free task slot.
    pub async fn connect(host: &Rc<Host<N>>, options: ControllerOptions) -> Result<Self, Error> {
        let association = Association::establish(host, &options).await?;
        let loss = association.loss.clone();
        let inner = Rc::new(Inner {
            host: host.clone(),
            options,
            state: RefCell::new(State::Recovering),
            changed: FifoWait::new(WAITERS),
            closed: Cell::new(false),
            associations: Cell::new(0),
        });
        inner.adopt(association);
        let supervisor = supervise(Rc::downgrade(&inner), loss);
        spawn(host, supervisor)?;
        Ok(Self { inner })
    }

    /// The I/O queue `index`, counted from 0; where a later association has fewer queues, they are
    /// shared.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the controller has no such queue now.
    pub fn io_queue(&self, index: u16) -> Result<IoQueue<N>, Error> {
        if index >= self.io_queues() {
            return Err(Error::Invalid("the controller has no such I/O queue"));
        }
        Ok(IoQueue::new(self.inner.clone(), QueueIndex::Io(index)))
    }

    /// The I/O queues of the current association; 0 while there is none.
    #[must_use]
    pub fn io_queues(&self) -> u16 {
        match &*self.inner.state.borrow() {
            State::Live(association) => {
                u16::try_from(association.io.len()).expect("asked for with 16 bits")
            }
            State::Recovering | State::Ended(_) => 0,
        }
    }

    /// What the controller said about itself when the current association was made.
    ///
    /// # Errors
    /// Why there is no association.
    pub fn facts(&self) -> Result<Facts, Error> {
        match &*self.inner.state.borrow() {
            State::Live(association) => Ok(association.facts.clone()),
            State::Recovering => Err(Error::Transport(io::ErrorKind::NotConnected)),
            State::Ended(error) => Err(*error),
        }
    }

    /// The digests that the current association's I/O queues use; its admin queue's where it has no
    /// others.
    #[must_use]
    pub fn digests(&self) -> Option<Digests> {
        match &*self.inner.state.borrow() {
            State::Live(association) => Some(association.connection(QueueIndex::Io(0)).digests()),
            State::Recovering | State::Ended(_) => None,
        }
    }

    /// How many associations there have been: 1, and 1 more with each reconnection.
    #[must_use]
    pub fn associations(&self) -> u64 {
        self.inner.associations.get()
    }

    /// Sends any command to the admin queue and gives its completion, whatever its status. The
    /// identifier and the data pointer are filled in.
    ///
    /// # Errors
    /// As for [`Connection::command`].
    pub async fn admin_command(
        &self,
        sqe: &SubmissionEntry,
        data: Data<'_>,
    ) -> Result<Completion, Error> {
        let timeout = Some(self.inner.options.command_timeout);
        self.inner
            .command(QueueIndex::Admin, sqe, data, timeout)
            .await
    }

    /// Waits for the controller's next asynchronous event; gives dword 0 of its completion. A
    /// request that is given up stays with the controller, so wait in one task for all events.
    ///
    /// # Errors
    /// As for [`Connection::command`], or [`Error::Status`] where the controller takes no more
    /// requests.
    pub async fn event(&self) -> Result<u32, Error> {
        let sqe = admin::async_event_request();
        let completion = self
            .inner
            .command(QueueIndex::Admin, &sqe, Data::None, None)
            .await?;
        Ok(completion.ok()?.dw0())
    }

    /// Asks the controller to abort a command: of those in flight on the I/O queue `index`, the `nth`,
    /// counted around. True where it says that it did so at once; false where not, or where none is
    /// in flight. The command ends by its own completion in any case.
    ///
    /// # Errors
    /// As for [`admin_command`](Self::admin_command), and [`Error::Status`].
    pub async fn abort(&self, index: u16, nth: usize) -> Result<bool, Error> {
        let connection = self.inner.live(QueueIndex::Io(index)).await?;
        let Some(cid) = connection.nth_in_flight(nth) else {
            return Ok(false);
        };
        let sqe = admin::abort(FIRST_IO_QUEUE + index, cid);
        let completion = self.admin_command(&sqe, Data::None).await?.ok()?;
        Ok(completion.dw0() & admin::ABORT_NOT_ABORTED == 0)
    }

    /// The admin connection, to be used and not to be kept.
    pub(super) async fn admin(&self) -> Result<Rc<Connection<N::Stream>>, Error> {
        self.inner.live(QueueIndex::Admin).await
    }

    pub(super) fn admin_on<'a>(&'a self, connection: &'a Connection<N::Stream>) -> Admin<'a, N> {
        Admin {
            host: &self.inner.host,
            connection,
            timeout: self.inner.options.command_timeout,
        }
    }

    pub(super) fn host(&self) -> &Rc<Host<N>> {
        &self.inner.host
    }

    /// Shuts the controller down in order (CC.SHN), waits until it says that this is complete, and
    /// closes.
    ///
    /// # Errors
    /// Why the shutdown could not be seen to complete. Closed it is in any case.
    pub async fn shutdown(self) -> Result<(), Error> {
        let connection = self.admin().await?;
        let admin = self.admin_on(&connection);
        let rtd3e = u64::from(self.facts()?.identify.rtd3e.get());
        let timeout = match rtd3e {
            0 => SHUTDOWN_TIMEOUT,
            micros => Duration::from_micros(micros).min(SHUTDOWN_TIMEOUT_MAX),
        };
        let reactor = self.host().reactor();
        let deadline = reactor.now().plus(timeout);
        let cc = admin.property(property::CC, PropertySize::Four).await?;
        let cc = Cc(u32::try_from(cc).expect("a property of four bytes"));
        let value = u64::from(cc.with_shn(Shn::Normal).0);
        admin
            .set_property(property::CC, PropertySize::Four, value)
            .await?;
        while admin.csts().await?.shst() != Shst::Complete {
            if reactor.now() >= deadline {
                return Err(Error::TimedOut);
            }
            reactor.sleep(SHUTDOWN_POLL).await;
        }
        Ok(())
    }
}

impl<N: Network> Inner<N> {
    /// Sends a command; again, where that is allowed, when its connection is lost.
    pub(super) async fn command(
        &self,
        queue: QueueIndex,
        sqe: &SubmissionEntry,
        data: Data<'_>,
        timeout: Option<Duration>,
    ) -> Result<Completion, Error> {
        let mut replays = 0;
        loop {
            let connection = match self.look(queue) {
                Some(found) => found?,
                None => self.live(queue).await?,
            };
            let error = match connection.command(sqe, data, timeout).await {
                Err(error) if error.is_connection_lost() || error == Error::DataDigest => error,
                other => return other,
            };
            let Some(after) = self.replay_after() else {
                return Err(error);
            };
            if replays == REPLAYS_MAX {
                return Err(error);
            }
            replays += 1;
            if error.is_connection_lost() {
                self.host.reactor().sleep(after).await;
            }
        }
    }

    /// The connection of a queue, once there is one.
    pub(super) async fn live(&self, queue: QueueIndex) -> Result<Rc<Connection<N::Stream>>, Error> {
        self.changed.wait_for(|| self.look(queue)).await
    }

    /// The connection of a queue, or why there is none; `None` where it is worth waiting for one.
    fn look(&self, queue: QueueIndex) -> Option<Result<Rc<Connection<N::Stream>>, Error>> {
        match &*self.state.borrow() {
            State::Live(association) => Some(Ok(association.connection(queue))),
            State::Ended(error) => Some(Err(*error)),
            State::Recovering if self.replay_after().is_some() => None,
            State::Recovering => Some(Err(Error::Transport(io::ErrorKind::NotConnected))),
        }
    }

    fn replay_after(&self) -> Option<Duration> {
        match self.options.recovery {
            Recovery::Reconnect {
                commands: LostCommands::Replay { after },
                ..
            } => Some(after),
            Recovery::Reconnect { .. } | Recovery::None => None,
        }
    }

    /// Makes a new association the current one.
    fn adopt(&self, association: Association<N>) {
        self.associations.set(self.associations.get() + 1);
        self.enter(State::Live(association));
    }

    /// Keeps the current association alive, if there is one and the options ask for it.
    async fn keep_alive(controller: Weak<Self>) {
        let kept = controller.upgrade().and_then(|inner| {
            let interval = inner.options.keep_alive / 2;
            match &*inner.state.borrow() {
                State::Live(association) if !interval.is_zero() => {
                    let connection = Rc::downgrade(association.admin.connection());
                    Some((inner.host.clone(), connection, interval))
                }
                _ => None,
            }
        });
        if let Some((host, connection, interval)) = kept {
            keep_alive(host, connection, interval).await;
        }
    }

    /// Changes the state; what the old one owned ends.
    fn enter(&self, state: State<N>) {
        let old = self.state.replace(state);
        self.changed.notify();
        drop(old);
    }

    /// Ends every connection of the association, for the reason that one was lost for.
    fn lost(&self, error: Error) {
        if let State::Live(association) = &*self.state.borrow() {
            association.end(error);
        }
        self.enter(match self.options.recovery {
            Recovery::None => State::Ended(error),
            Recovery::Reconnect { .. } => State::Recovering,
        });
    }

    fn close(&self) {
        self.closed.set(true);
        self.enter(State::Ended(Error::Closed));
    }
}

impl<N: Network> Association<N> {
    fn connection(&self, queue: QueueIndex) -> Rc<Connection<N::Stream>> {
        let link = match queue {
            QueueIndex::Admin => &self.admin,
            QueueIndex::Io(index) => match self.io.len() {
                0 => &self.admin,
                count => &self.io[usize::from(index) % count],
            },
        };
        link.connection().clone()
    }
}

fn spawn<N: Network>(
    host: &Host<N>,
    task: impl Future<Output = ()> + 'static,
) -> Result<(), Error> {
    // A control path: its futures are large and few, so they live on the heap.
    host.reactor()
        .spawn(Box::pin(task))
        .map_err(|_| Error::Invalid("the reactor has no free task slot for the controller"))
}

/// Waits for the association's loss, and makes new ones for as long as the options say.
async fn supervise<N: Network>(controller: Weak<Inner<N>>, mut loss: Rc<Loss>) {
    loop {
        let error = lost(&loss, Inner::keep_alive(controller.clone())).await;
        let Some(inner) = controller.upgrade() else {
            return;
        };
        if inner.closed.get() {
            return;
        }
        tracing::warn!(subsystem = %inner.options.subsystem, %error, "connection lost");
        inner.lost(error);
        drop(inner);
        match reconnect(&controller).await {
            Some(new) => loss = new,
            None => return,
        }
    }
}

/// Waits for the association's loss, and keeps it alive meanwhile: that ends with it, so that a host
/// whose connections come and go does not gather tasks.
async fn lost(loss: &Loss, keeping: impl Future<Output = ()>) -> Error {
    let mut wait = pin!(loss.wait());
    let mut keeping = pin!(keeping);
    let mut keeps = true;
    std::future::poll_fn(|context| {
        if let Poll::Ready(error) = wait.as_mut().poll(context) {
            return Poll::Ready(error);
        }
        if keeps && keeping.as_mut().poll(context).is_ready() {
            keeps = false;
            // It may have ended the connection just now.
            return wait.as_mut().poll(context);
        }
        Poll::Pending
    })
    .await
}

/// Tries to make a new association, with growing pauses. Gives where its loss will be reported;
/// `None` where there is none to be.
async fn reconnect<N: Network>(controller: &Weak<Inner<N>>) -> Option<Rc<Loss>> {
    let inner = controller.upgrade()?;
    let Recovery::Reconnect {
        delay_min,
        delay_max,
        give_up_after,
        ..
    } = inner.options.recovery
    else {
        return None;
    };
    let reactor = inner.host.reactor().clone();
    drop(inner);
    let give_up_at = reactor.now().plus(give_up_after);
    let mut delay = delay_min;
    loop {
        let inner = controller.upgrade()?;
        let outcome = Association::establish(&inner.host, &inner.options).await;
        if inner.closed.get() {
            return None;
        }
        let outcome = outcome.map(|association| {
            let loss = association.loss.clone();
            inner.adopt(association);
            loss
        });
        let error = match outcome {
            Ok(loss) => {
                tracing::info!(subsystem = %inner.options.subsystem, "connected again");
                return Some(loss);
            }
            Err(error) => error,
        };
        let final_refusal = matches!(error, Error::Refused { status, .. } if status.dnr());
        if final_refusal || reactor.now().plus(delay) > give_up_at {
            tracing::warn!(subsystem = %inner.options.subsystem, %error, "gave up connecting");
            inner.enter(State::Ended(error));
            return None;
        }
        drop(inner);
        reactor.sleep(delay).await;
        delay = (delay * 2).min(delay_max);
    }
}

/// Sends Keep Alive every `interval` for as long as the connection lives; ends the connection when
/// the controller does not answer.
async fn keep_alive<N: Network>(
    host: Rc<Host<N>>,
    connection: Weak<Connection<N::Stream>>,
    interval: Duration,
) {
    loop {
        host.reactor().sleep(interval).await;
        let Some(connection) = connection.upgrade() else {
            return;
        };
        let sqe = admin::keep_alive();
        match connection.command(&sqe, Data::None, Some(interval)).await {
            Ok(completion) if completion.status.is_success() => {}
            Ok(completion) => {
                tracing::warn!(status = %completion.status, "keep-alive failed");
                connection.end(Error::Transport(io::ErrorKind::ConnectionAborted), None);
                return;
            }
            Err(_) => return,
        }
    }
}
