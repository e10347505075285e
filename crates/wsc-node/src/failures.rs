//! What failed, counted: each failure once, by reason and by the type of its receiver, whoever found it out.
//!
//! A failure is what handlers are told of, or would be: a pair that failed, expired or was rejected, attempts that were
//! used up without an acknowledgement (also where the message then rests), and a message that was refused because
//! something was full. So there are never fewer failures than pairs that failed.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use wsc_failure::{AlertConfig, AlertHandler, AlertSink, FailureAlert, FailureWatcher, LoggingHandler};
use wsc_protocol::{FailureKind, FailureReason, UserType};
use wsc_transport::Tally;

use crate::{core::Core, metrics::whole};

/// The failures of one node.
#[derive(Debug, Default)]
pub(crate) struct FailureCounts(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Those that were met one by one, by reason and by type of receiver.
    one_by_one: [[u64; TYPES]; REASONS],
    /// Members of rooms, and those whom a broadcast was for, by reason. Only the ledger counts them.
    of_fanouts: [u64; REASONS],
}

impl FailureCounts {
    /// Counts one failure; `user_type` is the receiver's, where it is known.
    ///
    /// A pair is counted here before it is in the ledger: then what the ledger has more than this is never too much.
    pub(crate) fn count(&self, reason: FailureReason, user_type: Option<UserType>) {
        let user_type = user_type.map_or(UNKNOWN, |user_type| user_type as usize);
        self.0.lock().one_by_one[reason as usize][user_type] += 1;
    }

    /// The sums; `tally` is the ledger's of a moment ago. They never shrink.
    pub(crate) fn totals(&self, tally: &Tally) -> FailureTotals {
        let mut counts = self.0.lock();
        let Counts { one_by_one, of_fanouts } = &mut *counts;
        for (reason, all) in
            [(FailureReason::QueueFull, tally.queue_full), (FailureReason::ConnClosed, tally.conn_closed)]
        {
            let known: u64 = one_by_one[reason as usize].iter().sum();
            let of_fanouts = &mut of_fanouts[reason as usize];
            *of_fanouts = whole(all).saturating_sub(known).max(*of_fanouts);
        }
        let mut totals = FailureTotals { by_reason: *of_fanouts, by_user_type: [0; TYPES] };
        totals.by_user_type[UNKNOWN] = of_fanouts.iter().sum();
        for (reason, by_type) in one_by_one.iter().enumerate() {
            for (user_type, times) in by_type.iter().enumerate() {
                totals.by_reason[reason] += times;
                totals.by_user_type[user_type] += times;
            }
        }
        totals
    }
}

/// Failures since the start. The three ways to divide them give the same sum.
#[derive(Clone, Debug, Default)]
pub(crate) struct FailureTotals {
    by_reason: [u64; REASONS],
    by_user_type: [u64; TYPES],
}

impl FailureTotals {
    pub(crate) fn total(&self) -> u64 {
        self.by_reason.iter().sum()
    }

    pub(crate) fn by_reason(&self) -> impl Iterator<Item = (FailureReason, u64)> {
        FailureReason::ALL.into_iter().zip(self.by_reason)
    }

    pub(crate) fn of_reason(&self, reason: FailureReason) -> u64 {
        self.by_reason[reason as usize]
    }

    pub(crate) fn of_kind(&self, kind: FailureKind) -> u64 {
        self.by_reason().filter(|(reason, _)| reason.kind() == kind).map(|(_, times)| times).sum()
    }

    /// By the type of the receiver. `unknown` are those who were away, and the members of rooms.
    pub(crate) fn by_user_type(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = UserType::ALL.into_iter().map(UserType::as_str).chain(["unknown"]);
        names.zip(self.by_user_type)
    }
}

impl Core {
    /// Counts one failed message to a user.
    pub(crate) fn count_failure(&self, reason: FailureReason, user_id: &str) {
        self.failed.count(reason, self.user_type_of(user_id));
    }

    /// Counts a message that was refused because something was full.
    pub(crate) fn count_refusal(&self, reason: FailureReason) {
        self.failed.count(reason, None);
    }

    /// The type of a user who is here; that of the oldest connection, should they differ.
    pub(crate) fn user_type_of(&self, user_id: &str) -> Option<UserType> {
        let user = self.users.get(user_id)?;
        user.recipients().as_slice().first().map(|session| session.user_type())
    }

    pub(crate) fn failure_totals(&self) -> FailureTotals {
        let tally = self.fanouts.stats().ledger().snapshot();
        self.failed.totals(&tally)
    }

    /// Writes failures to the log, or does so no longer.
    pub(crate) fn log_failures(&self, is_wanted: bool) {
        let registry = self.failures.registry();
        let mut handler = self.failure_log.lock();
        match *handler {
            None if is_wanted => *handler = Some(LoggingHandler::add_to(registry)),
            Some(id) if !is_wanted => {
                registry.remove(id);
                *handler = None;
            }
            _ => {}
        }
    }

    /// Raises alerts when too much fails (`failure_handlers.enable_alert`).
    ///
    /// It looks at the sums once a second. So all failures count, those of rooms too, and neither a full pool of
    /// handlers nor a slow sink can hold up messages or hide a failure.
    pub(crate) async fn run_alerts(self: Arc<Self>, sink: Option<Arc<dyn AlertSink>>) {
        let counting = Arc::clone(&self);
        let alert_all = move |alert: &FailureAlert| {
            counting.metrics.alerted(alert.kind);
            if let Some(sink) = &sink {
                sink.alert(alert);
            }
        };
        let mut config = self.alert_config();
        let alerts = AlertHandler::new(config.clone().unwrap_or_default(), alert_all);
        let mut seen = FailureTotals::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(ALERT_INTERVAL) => {}
                () = self.stop.cancelled() => return,
            }
            let wanted = self.alert_config();
            if let Some(wanted) = wanted.as_ref().filter(|_| wanted != config) {
                alerts.reconfigure(wanted.clone());
            }
            config = wanted;
            let now = self.failure_totals();
            for ((reason, times), (_, before)) in now.by_reason().zip(seen.by_reason()) {
                if config.is_some() && times > before {
                    alerts.on_failures(reason, None, times - before);
                }
            }
            seen = now;
        }
    }

    /// What raises alerts; `None` where nothing does.
    fn alert_config(&self) -> Option<AlertConfig> {
        let settings = self.settings();
        crate::settings::alerts(&settings)
    }
}

const REASONS: usize = FailureReason::ALL.len();

/// Every user type, and those that are not known.
const TYPES: usize = UserType::ALL.len() + 1;
const UNKNOWN: usize = TYPES - 1;

const ALERT_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(queue_full: i64) -> Tally {
        let mut tally = Tally::default();
        tally.queue_full = queue_full;
        tally
    }

    fn of_type(totals: &FailureTotals, name: &str) -> u64 {
        totals.by_user_type().find(|(n, _)| *n == name).unwrap().1
    }

    #[test]
    fn however_they_are_divided_the_sum_is_the_same() {
        let counts = FailureCounts::default();
        counts.count(FailureReason::QueueFull, Some(UserType::Agent));
        counts.count(FailureReason::Rejected, Some(UserType::Agent));
        counts.count(FailureReason::PendingFull, None);
        // The ledger has the one above, and four members of a room.
        let totals = counts.totals(&tally(5));
        assert_eq!(totals.total(), 7);
        assert_eq!(FailureKind::ALL.into_iter().map(|kind| totals.of_kind(kind)).sum::<u64>(), 7);
        assert_eq!(totals.by_user_type().map(|(_, times)| times).sum::<u64>(), 7);
        assert_eq!((of_type(&totals, "agent"), of_type(&totals, "unknown")), (2, 5));
        assert_eq!(totals.of_kind(FailureKind::QueueFull), 6);
    }

    #[test]
    fn what_the_ledger_does_not_have_yet_is_not_counted_twice_later() {
        let counts = FailureCounts::default();
        counts.count(FailureReason::QueueFull, Some(UserType::Bot));
        for (in_ledger, total) in [(0, 1), (1, 1), (3, 3), (2, 3)] {
            assert_eq!(counts.totals(&tally(in_ledger)).total(), total, "{in_ledger}");
        }
    }
}
