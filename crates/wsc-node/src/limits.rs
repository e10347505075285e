//! Limits that a connection or a whole address has to keep.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wsc_config::LimitSettings;
use wsc_protocol::Id;

/// The generic cell rate algorithm: a leaky bucket in one number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gcra {
    /// Nanoseconds that one unit takes to leak away.
    interval: u64,
    /// Nanoseconds that the bucket holds.
    capacity: u64,
    /// When the bucket is empty, in nanoseconds on the caller's clock.
    empty_at: u64,
}

impl Gcra {
    /// A limit of `rate` units per second, `burst` of them at once; `None` where there is no limit.
    pub(crate) fn new(rate: u64, burst: u64) -> Option<Self> {
        let interval = SECOND.checked_div(rate)?.max(1);
        Some(Self { interval, capacity: interval.saturating_mul(burst.max(1)), empty_at: 0 })
    }

    /// Whether `units` may pass at `now`; if not, how long until they may.
    pub(crate) fn check(&mut self, units: u64, now: u64) -> Result<(), Duration> {
        let start = self.empty_at.max(now);
        let end = start.saturating_add(self.interval.saturating_mul(units));
        let over = (end - now).saturating_sub(self.capacity);
        // More than the bucket holds passes when the bucket is empty, or it never would.
        if over == 0 || start == now {
            self.empty_at = end;
            Ok(())
        } else {
            Err(Duration::from_nanos(over))
        }
    }
}

/// What a message over the rate comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may pass.
    Pass,
    /// It is not handled; the sender is told so where it has not been a moment ago.
    Refuse {
        /// When to try again.
        retry_after: Duration,
        /// Whether to tell.
        tell: bool,
    },
    /// The connection has sent far too much.
    Close,
}

/// The rates of one connection.
#[derive(Debug)]
pub(crate) struct Rates(Mutex<State>);

#[derive(Debug)]
struct State {
    start: Instant,
    messages: Option<Gcra>,
    bytes: Option<Gcra>,
    told_at: Option<u64>,
    /// What was refused since.
    refused_since: u64,
    refused_messages: u64,
    refused_bytes: u64,
    /// What is too much of that; `u64::MAX` where there is no such rate.
    max_messages: u64,
    max_bytes: u64,
}

impl Rates {
    /// The rates that the settings ask for; `None` where they ask for none.
    pub(crate) fn new(limits: &LimitSettings) -> Option<Self> {
        let messages = Gcra::new(limits.messages_per_second, limits.message_burst());
        let bytes = Gcra::new(limits.bytes_per_second, limits.byte_burst());
        if messages.is_none() && bytes.is_none() {
            return None;
        }
        let too_much = |burst: u64| if burst == 0 { u64::MAX } else { burst.saturating_mul(REFUSED_BURSTS) };
        Some(Self(Mutex::new(State {
            start: Instant::now(),
            messages,
            bytes,
            told_at: None,
            refused_since: 0,
            refused_messages: 0,
            refused_bytes: 0,
            max_messages: too_much(limits.message_burst()),
            max_bytes: too_much(limits.byte_burst()),
        })))
    }

    /// Judges one message of `len` bytes.
    pub(crate) fn check(&self, len: usize) -> Verdict {
        let mut state = self.0.lock();
        let now = state.start.elapsed().as_nanos() as u64;
        state.check(len, now)
    }
}

impl State {
    fn check(&mut self, len: usize, now: u64) -> Verdict {
        // The second cell is asked only where the first lets pass; what it then refuses was charged once too often,
        // which errs on the side of the limit.
        let passed = self.messages.as_mut().map_or(Ok(()), |cell| cell.check(1, now));
        let passed = passed.and_then(|()| self.bytes.as_mut().map_or(Ok(()), |cell| cell.check(len as u64, now)));
        let Err(retry_after) = passed else { return Verdict::Pass };
        if now.saturating_sub(self.refused_since) > REFUSAL_WINDOW {
            self.refused_since = now;
            (self.refused_messages, self.refused_bytes) = (0, 0);
        }
        self.refused_messages += 1;
        self.refused_bytes = self.refused_bytes.saturating_add(len as u64);
        if self.refused_messages > self.max_messages || self.refused_bytes > self.max_bytes {
            return Verdict::Close;
        }
        let tell = self.told_at.is_none_or(|told_at| now - told_at >= SECOND);
        if tell {
            self.told_at = Some(now);
        }
        Verdict::Refuse { retry_after, tell }
    }
}

/// Rates of users who send over HTTP, where they have no connection to hold them.
#[derive(Debug)]
pub(crate) struct UserRates {
    start: Instant,
    cells: DashMap<Id, Gcra>,
}

impl Default for UserRates {
    fn default() -> Self {
        Self { start: Instant::now(), cells: DashMap::new() }
    }
}

impl UserRates {
    /// Whether one more message of a user may pass; if not, how long until it may.
    pub(crate) fn check(&self, user_id: &Id, limits: &LimitSettings) -> Result<(), Duration> {
        let Some(fresh) = Gcra::new(limits.messages_per_second, limits.message_burst()) else { return Ok(()) };
        let mut cell = self.cells.entry(user_id.clone()).or_insert(fresh);
        // The rates of this moment count, from where the bucket stands.
        *cell = Gcra { empty_at: cell.empty_at, ..fresh };
        cell.check(1, self.start.elapsed().as_nanos() as u64)
    }

    /// Forgets users whose buckets are empty.
    pub(crate) fn tidy(&self) {
        let now = self.start.elapsed().as_nanos() as u64;
        self.cells.retain(|_, cell| cell.empty_at > now);
    }
}

/// Connections by address, counted while there is a limit.
#[derive(Debug, Default)]
pub(crate) struct Addresses(Arc<DashMap<IpAddr, u64>>);

impl Addresses {
    /// Whether an address has all of its `max` places.
    pub(crate) fn is_full(&self, address: IpAddr, max: u64) -> bool {
        self.0.get(&address).is_some_and(|count| *count >= max)
    }

    /// Takes one of `max` places of an address; `None` where all are taken.
    pub(crate) fn take(&self, address: IpAddr, max: u64) -> Option<AddressPlace> {
        let mut count = self.0.entry(address).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(AddressPlace { counts: Arc::clone(&self.0), address })
    }
}

/// A place of an address; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct AddressPlace {
    counts: Arc<DashMap<IpAddr, u64>>,
    address: IpAddr,
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        self.counts.remove_if_mut(&self.address, |_, count| {
            *count = count.saturating_sub(1);
            *count == 0
        });
    }
}

/// HTTP connections beside WebSockets. There are so many places; who comes when all are taken cuts off the one that has
/// been idle or slow for longest, so that connections that only wait keep nobody out.
#[derive(Debug, Default)]
pub(crate) struct HttpPlaces(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    next: u64,
    /// Oldest first.
    taken: BTreeMap<u64, Arc<HttpState>>,
}

/// What is known of one HTTP connection.
#[derive(Debug, Default)]
pub(crate) struct HttpState {
    /// Requests that are being worked on.
    busy: AtomicU32,
    cut: CancellationToken,
}

impl HttpState {
    /// A request is being worked on, until this is dropped.
    pub(crate) fn work(self: &Arc<Self>) -> Working {
        self.busy.fetch_add(1, Relaxed);
        Working(Arc::clone(self))
    }
}

impl HttpState {
    /// The request that is being worked on waits for the peer to send the rest of it, until this is dropped: as long as
    /// that it is as good as idle.
    pub(crate) fn wait(self: &Arc<Self>) -> Waiting {
        self.busy.fetch_sub(1, Relaxed);
        Waiting(Arc::clone(self))
    }
}

/// See [`HttpState::wait`].
#[derive(Debug)]
pub(crate) struct Waiting(Arc<HttpState>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.busy.fetch_add(1, Relaxed);
    }
}

/// See [`HttpState::work`].
#[derive(Debug)]
pub(crate) struct Working(Arc<HttpState>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

/// A place of an HTTP connection; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct HttpPlace<'p> {
    places: &'p HttpPlaces,
    number: u64,
    pub(crate) state: Arc<HttpState>,
}

impl HttpPlaces {
    /// Takes one of `max` places; `None` where everybody who has one is being served.
    pub(crate) fn take(&self, max: u64) -> Option<HttpPlace<'_>> {
        let mut places = self.0.lock();
        if places.taken.len() as u64 >= max {
            let idle = places.taken.iter().find(|(_, state)| state.busy.load(Relaxed) == 0).map(|(&number, _)| number);
            let state = places.taken.remove(&idle?)?;
            state.cut.cancel();
        }
        let number = places.next;
        places.next += 1;
        let state = Arc::<HttpState>::default();
        places.taken.insert(number, Arc::clone(&state));
        Some(HttpPlace { places: self, number, state })
    }
}

impl HttpPlace<'_> {
    /// Ends when somebody else needs the place.
    pub(crate) async fn is_cut(&self) {
        self.state.cut.cancelled().await;
    }
}

impl Drop for HttpPlace<'_> {
    fn drop(&mut self) {
        self.places.0.lock().taken.remove(&self.number);
    }
}

const SECOND: u64 = 1_000_000_000;

/// So many bursts refused within [`REFUSAL_WINDOW`] are the end.
const REFUSED_BURSTS: u64 = 10;

/// So many nanoseconds of refusals count towards the end of a connection.
const REFUSAL_WINDOW: u64 = 10 * SECOND;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(messages: u64, burst: u64) -> LimitSettings {
        let mut limits = LimitSettings::default();
        limits.messages_per_second = messages;
        limits.burst = Some(burst);
        limits
    }

    #[test]
    fn without_a_rate_there_is_nothing_to_keep() {
        assert!(Rates::new(&LimitSettings::default()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_the_rate() {
        let rates = Rates::new(&limits(5, 10)).unwrap();
        for _ in 0..10 {
            assert_eq!(rates.check(1), Verdict::Pass);
        }
        let Verdict::Refuse { retry_after, tell: true } = rates.check(1) else { panic!("passed") };
        assert_eq!(retry_after, Duration::from_millis(200));
        // Told once a second at most.
        assert!(matches!(rates.check(1), Verdict::Refuse { tell: false, .. }));
        tokio::time::advance(retry_after).await;
        assert_eq!(rates.check(1), Verdict::Pass);
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..5 {
            assert_eq!(rates.check(1), Verdict::Pass);
        }
        assert!(matches!(rates.check(1), Verdict::Refuse { tell: true, .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn far_too_much_ends_it() {
        let rates = Rates::new(&limits(5, 2)).unwrap();
        let verdicts: Vec<_> = (0..23).map(|_| rates.check(1)).collect();
        assert!(verdicts[2..22].iter().all(|v| matches!(v, Verdict::Refuse { .. })));
        assert_eq!(verdicts[22], Verdict::Close);
    }

    #[tokio::test]
    async fn who_only_waits_makes_room_for_who_comes() {
        let places = HttpPlaces::default();
        let (first, second) = (places.take(2).unwrap(), places.take(2).unwrap());
        let working = first.state.work();
        let third = places.take(2).unwrap();
        second.is_cut().await;
        let _busy = third.state.work();
        assert!(places.take(2).is_none(), "nobody who is served is cut");
        drop(working);
        let fourth = places.take(2).unwrap();
        first.is_cut().await;
        drop((first, second, third, fourth));
        assert!(places.0.lock().taken.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn far_too_many_bytes_end_it_too() {
        let mut limits = LimitSettings::default();
        limits.bytes_per_second = 1000;
        let rates = Rates::new(&limits).unwrap();
        // One more than the bucket holds passes while it is empty; ten bursts of 2,000 bytes may be refused.
        assert_eq!(rates.check(6000), Verdict::Pass);
        let verdicts: Vec<_> = (0..4).map(|_| rates.check(6000)).collect();
        assert!(verdicts[..3].iter().all(|v| matches!(v, Verdict::Refuse { .. })), "{verdicts:?}");
        assert_eq!(verdicts[3], Verdict::Close);
    }

    #[test]
    fn an_address_gets_its_places_back() {
        let addresses = Addresses::default();
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let first = addresses.take(ip, 2);
        let second = addresses.take(ip, 2);
        assert!(first.is_some() && second.is_some() && addresses.take(ip, 2).is_none());
        drop(first);
        assert!(addresses.take(ip, 2).is_some());
        drop(second);
        assert!(addresses.0.is_empty());
    }

    proptest! {
        /// Over any time the bucket lets pass no more than its size and what leaks away meanwhile.
        #[test]
        fn no_more_than_burst_and_rate(rate in 1..1000_u64, burst in 1..50_u64, steps in prop::collection::vec(0..50_000_000_u64, 1..200)) {
            let mut cell = Gcra::new(rate, burst).unwrap();
            let mut now = 0;
            let mut passed = 0;
            for step in steps {
                now += step;
                passed += u64::from(cell.check(1, now).is_ok());
                prop_assert!(passed <= burst + 1 + now * rate / SECOND);
            }
        }
    }
}
