//! Which events an observer is told about.

use std::{convert::Infallible, fmt, str::FromStr};

use wsc_protocol::EventType;

/// A set of event types.
///
/// As text it is a name (`client.connected`), a group (`failure.*`) or everything (`*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EventFilter(u64);

// One bit for each type; a 65th needs a wider mask here and in the bus.
const _: () = assert!(EventType::ALL.len() <= 64);

impl EventFilter {
    /// No event.
    pub const NONE: Self = Self(0);

    /// Every event.
    pub const ALL: Self = Self(u64::MAX >> (64 - EventType::ALL.len()));

    /// Exactly one type.
    pub const fn only(event_type: EventType) -> Self {
        Self(1 << event_type as u8)
    }

    /// Reads a list of names, groups and `*`: the events that any of them names.
    ///
    /// # Errors
    ///
    /// The first text that names no event.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, UnknownEvent> {
        texts.into_iter().try_fold(Self::NONE, |all, text| Ok(all.or(text.as_ref().parse()?)))
    }

    /// The events of either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The events of this one that are not in the other.
    #[must_use]
    pub const fn except(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the type is in the set.
    pub const fn matches(self, event_type: EventType) -> bool {
        self.0 & Self::only(event_type).0 != 0
    }

    /// The types of the set, in declaration order.
    pub fn types(self) -> impl Iterator<Item = EventType> {
        EventType::ALL.iter().copied().filter(move |&t| self.matches(t))
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl FromIterator<EventType> for EventFilter {
    fn from_iter<I: IntoIterator<Item = EventType>>(types: I) -> Self {
        types.into_iter().fold(Self::NONE, |all, t| all.or(Self::only(t)))
    }
}

impl From<EventType> for EventFilter {
    fn from(event_type: EventType) -> Self {
        Self::only(event_type)
    }
}

impl FromStr for EventFilter {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, UnknownEvent> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        let names = EventType::ALL.iter().copied();
        let found: Self = match text.strip_suffix('*') {
            // The dot stays with the group, so that `room*` is no group and nothing is caught by accident.
            Some(group) if group.ends_with('.') => names.filter(|t| t.as_str().starts_with(group)).collect(),
            Some(_) => Self::NONE,
            None => names.filter(|t| t.as_str() == text).collect(),
        };
        if found == Self::NONE { Err(UnknownEvent { text: text.to_owned() }) } else { Ok(found) }
    }
}

impl TryFrom<&str> for EventFilter {
    type Error = UnknownEvent;

    fn try_from(text: &str) -> Result<Self, UnknownEvent> {
        text.parse()
    }
}

impl fmt::Debug for EventFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL { f.write_str("[*]") } else { f.debug_list().entries(self.types()).finish() }
    }
}

/// A text that names no event and no group of events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no event (names, groups such as `failure.*`, and `*` do)")]
pub struct UnknownEvent {
    text: String,
}

/// An event type always names an event, so that what takes types and texts alike has one error.
impl From<Infallible> for UnknownEvent {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_bits() {
        for (position, &event_type) in EventType::ALL.iter().enumerate() {
            assert_eq!(event_type as usize, position);
            assert!(EventFilter::ALL.matches(event_type) && !EventFilter::NONE.matches(event_type));
        }
        assert_eq!(EventFilter::ALL.types().count(), EventType::ALL.len());
    }

    #[test]
    fn names_and_groups_are_read() {
        let failures: EventFilter = "failure.*".parse().unwrap();
        assert_eq!(failures.types().count(), 5);
        assert!(failures.types().all(|t| t.as_str().starts_with("failure.")));
        assert_eq!("room.joined".parse(), Ok(EventFilter::only(EventType::RoomJoined)));
        assert_eq!("*".parse(), Ok(EventFilter::ALL));

        let both = EventFilter::parse(["hub.*", "room.left"]).unwrap();
        assert_eq!(
            both.types().collect::<Vec<_>>(),
            [EventType::RoomLeft, EventType::HubStarted, EventType::HubStopped]
        );
        let quiet = EventFilter::ALL.except("message.*".parse().unwrap());
        assert!(!quiet.matches(EventType::MessageSent) && quiet.matches(EventType::AckReceived));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in ["", "room", "room*", "room.*.x", "*.joined", ".*", "Room.Joined", "failures.*", "**"] {
            assert!(text.parse::<EventFilter>().is_err(), "{text:?}");
        }
    }
}
