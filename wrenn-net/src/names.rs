//! Names: questions from a slot whose policy has names are answered here, and what the answers say is opened.
//!
//! ```text
//!  guest ── any server, port 53 ──> tap0 │ redirected ──> sockets of this process in the slot's namespace │
//!                                                             │ serve.rs: whose slot it is, is known by the socket
//!        which names: claims.rs <── verdict ── message.rs <───┘
//!                                      │ passed on: upstream.rs, from the host's namespace
//!        the host's table <── pin ── answer ──> guest
//! ```
//!
//! The sockets are in the slot's namespace because there is nothing there to decide: who took the namespace over could
//! end the redirection and would then talk to the host's table, which lets no question through, or ask these sockets,
//! as the guest may. What is answered and what is opened is decided outside. In return nobody but the slot can reach
//! its sockets, no other firewall of the host is in the way, and the host itself listens nowhere.
//!
//! One thread per [`crate::HostNet`] serves all slots, from the first policy with names on. It works in the host's
//! namespace, so what it sends upstream is the host's. One task per slot owns all that the slot has under way,
//! bounded, so that ending the task ends everything of the slot.
//!
//! Invariant: an address is in the host's table before the guest is told it.

mod message;
mod pins;
mod resolver;
mod serve;
mod upstream;

pub(crate) use self::pins::{Elements, Pins, Times};
pub(crate) use self::resolver::{Ear, Resolver};
