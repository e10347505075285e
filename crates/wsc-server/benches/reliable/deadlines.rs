//! What the machine of a mailbox needs for a deadline, with as many of them as there are pending messages.

use std::{hint::black_box, time::Instant};

use anyhow::ensure;
use bytes::Bytes;
use uuid::Uuid;
use wsc_hub::delivery::mailbox::{Effect, Input, Kind, Letter, Mailbox, MailboxConfig, Millis, Place, Transmission};

use crate::{Sizes, pending::EACH, process::Figures};

/// Mailboxes, and the time that they are told.
struct Bench {
    mailboxes: Vec<Mailbox>,
    config: MailboxConfig,
    now: Millis,
    effects: Vec<Effect>,
}

pub(crate) fn measure(sizes: &Sizes) -> anyhow::Result<Figures> {
    let users = (sizes.pending / EACH).max(1) as usize;
    let letters = users as u64 * EACH;
    let mut config = MailboxConfig::default();
    config.ack_max_retries = 1;
    let mut bench = Bench { mailboxes: Vec::new(), config, now: 1_000, effects: Vec::new() };
    for _ in 0..users {
        let mut mailbox = Mailbox::new();
        let connected = Input::Connected { conn: CONN, nothing_rests: true };
        mailbox.handle(bench.now, &bench.config, connected, &mut bench.effects);
        bench.mailboxes.push(mailbox);
    }
    // One after the other over all mailboxes, as messages come: none stays in the processor's caches.
    let body = Bytes::from(vec![b'x'; sizes.content]);
    let each = |started: Instant| started.elapsed().as_nanos() as f64 / letters as f64;

    let started = Instant::now();
    for n in 0..letters {
        let id = id(n);
        let letter = Letter { id, kind: Kind::Reliable, body: body.clone(), expires_at: None, only: None };
        bench.tell(n, Input::Accept(letter));
        bench.tell(n, Input::Committed { id, place: Place(n + 1) });
    }
    let entering = each(started);

    // The last byte is written: the deadline is set.
    bench.now += 10;
    let started = Instant::now();
    for n in 0..letters {
        bench.tell(n, Input::Written { conn: CONN, id: id(n) });
    }
    let setting = each(started);

    // Half of the letters are acknowledged: their deadlines are taken out.
    let started = Instant::now();
    for n in 0..letters / 2 {
        let settled = bench.tell(n, Input::Acked { id: id(n) });
        ensure!(settled, "an acknowledgement settled nothing");
    }
    let acking = each(started) * 2.0;

    // The deadlines of the others pass.
    bench.now += bench.config.ack_timeout.as_millis() as u64;
    let started = Instant::now();
    let mut timeouts = 0;
    for mailbox in &mut bench.mailboxes {
        black_box(mailbox.next_wake());
        mailbox.handle(bench.now, &bench.config, Input::Wake, &mut bench.effects);
        let is_timeout = |effect: &&Effect| matches!(effect, Effect::AckTimeout { .. });
        timeouts += bench.effects.iter().filter(is_timeout).count() as u64;
        bench.effects.clear();
    }
    let passing = each(started) * 2.0;
    ensure!(timeouts == letters - letters / 2, "{timeouts} deadlines passed");
    Ok(Figures::default()
        .with("enter_ns", entering)
        .with("set_ns", setting)
        .with("ack_ns", acking)
        .with("pass_ns", passing))
}

impl Bench {
    /// Tells the mailbox of the nth letter something; answers what it asks for at once. True where a letter is settled.
    fn tell(&mut self, n: u64, input: Input) -> bool {
        let mailbox = (n % self.mailboxes.len() as u64) as usize;
        let mailbox = &mut self.mailboxes[mailbox];
        mailbox.handle(self.now, &self.config, input, &mut self.effects);
        let mut is_settled = false;
        let mut next = 0;
        while let Some(effect) = self.effects.get(next) {
            next += 1;
            match effect {
                Effect::Transmit(copy) => {
                    let answer = Input::Transmitted { conn: copy.conn, id: copy.id, result: Transmission::Queued };
                    mailbox.handle(self.now, &self.config, answer, &mut self.effects);
                }
                Effect::Settled { .. } => is_settled = true,
                _ => {}
            }
        }
        self.effects.clear();
        is_settled
    }
}

const CONN: Uuid = Uuid::from_u128(1);

fn id(n: u64) -> Uuid {
    Uuid::from_u128((1 << 100) + u128::from(n))
}
