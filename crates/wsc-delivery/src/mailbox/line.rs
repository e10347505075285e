//! What was handed in and has not entered yet.

use std::collections::VecDeque;

use uuid::Uuid;

use super::{Letter, Place};

/// Letters in the order in which they came. Each waits for those in front of it, so that a plain letter does not
/// overtake a reliable one that is still being stored.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<Waiting>,
    passing_bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    letter: Letter,
    is_stored: bool,
    /// Where, once that is known.
    place: Option<Place>,
}

impl Waiting {
    fn is_storing(&self) -> bool {
        self.is_stored && self.place.is_none()
    }
}

/// A letter at the head of the line that may enter.
#[derive(Debug)]
pub(super) enum Entering {
    Stored(Letter, Place),
    Passing(Letter),
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many bytes of letters wait that are only passed through.
    pub(super) fn passing_bytes(&self) -> usize {
        self.passing_bytes
    }

    pub(super) fn store(&mut self, letter: Letter) {
        self.waiting.push_back(Waiting { letter, is_stored: true, place: None });
    }

    pub(super) fn pass(&mut self, letter: Letter) {
        self.passing_bytes += letter.body.len();
        self.waiting.push_back(Waiting { letter, is_stored: false, place: None });
    }

    /// Notes that the letter is stored. False where none of this id waits for that.
    pub(super) fn stored(&mut self, id: Uuid, place: Place) -> bool {
        let Some(at) = self.storing(id) else { return false };
        self.waiting[at].place = Some(place);
        true
    }

    /// Removes a letter that the store has not taken. False where none of this id waits for that.
    pub(super) fn refused(&mut self, id: Uuid) -> bool {
        self.storing(id).is_some_and(|at| self.waiting.remove(at).is_some())
    }

    /// Whether a letter of this id is being stored, or is stored and waits for those in front of it.
    pub(super) fn contains(&self, id: Uuid) -> bool {
        self.waiting.iter().any(|waiting| waiting.is_stored && waiting.letter.id == id)
    }

    /// Takes the head, if it need not wait any more.
    pub(super) fn pop(&mut self) -> Option<Entering> {
        let Waiting { letter, place, .. } = self.waiting.pop_front_if(|head| !head.is_storing())?;
        Some(match place {
            Some(place) => Entering::Stored(letter, place),
            None => {
                self.passing_bytes -= letter.body.len();
                Entering::Passing(letter)
            }
        })
    }

    /// Answers come mostly in order, so it is mostly the first.
    fn storing(&self, id: Uuid) -> Option<usize> {
        self.waiting.iter().position(|waiting| waiting.is_storing() && waiting.letter.id == id)
    }
}
