// Who is logged in: the tokens, kept for all tabs, and how they are renewed.
//
// A refresh token is good once, and showing it again ends the session. So tabs take turns (Web Locks), and each looks
// first whether another one renewed the tokens meanwhile: in IndexedDB, too, since what one tab puts into localStorage
// others may see a while after they have got their turn.

const STORED = "wrenn.session";
const TEAM = "wrenn.team";
/** An access token is renewed so many seconds before its end. */
const EARLY = 30;

/** Told when the session is over, with why. */
let onEnd = () => {};

export function whenOver(listener) {
  onEnd = listener;
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORED));
  } catch {
    return null;
  }
}

/** `name` stays a session's own through its renewals. */
function keep(tokens, name) {
  const { access_token: access, refresh_token: refresh, expires_in: seconds } = tokens;
  const session = { access, refresh, until: Date.now() + seconds * 1000, at: Date.now(), name };
  localStorage.setItem(STORED, JSON.stringify(session));
  return session;
}

export function begin(tokens) {
  keep(tokens, String(Math.random()));
}

export function isOpen() {
  return stored() !== null;
}

/** Forgets the session in all tabs. */
export function forget(reason) {
  localStorage.removeItem(STORED);
  localStorage.removeItem(TEAM);
  turn.write(null);
  onEnd(reason);
}

// Another tab logged out.
addEventListener("storage", (event) => {
  if (event.key === STORED && event.newValue === null) onEnd("");
});

/** The team that is worked in; null for the user's first. */
export function team() {
  return localStorage.getItem(TEAM);
}

export function chooseTeam(id) {
  localStorage.setItem(TEAM, id);
}

/** An access token that is good; `refused` is one that the server did not take. */
export async function accessToken(refused) {
  const fresh = (session) => session && session.access !== refused && session.until - EARLY * 1000 > Date.now();
  const session = stored();
  if (!session) return null;
  if (fresh(session)) return session.access;
  return inTurn(async () => {
    const now = newer(stored(), await turn.read());
    if (!now) return null;
    if (fresh(now)) return now.access;
    return renew(now);
  });
}

async function renew(session) {
  const response = await fetch("/v1/auth/refresh", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ refresh_token: session.refresh }),
  });
  if (response.status === 401) {
    forget("Your session has ended. Log in again.");
    return null;
  }
  // The server is in trouble, and the token may be good still.
  if (!response.ok) throw new TypeError(`the session could not be renewed (${response.status})`);
  const renewed = keep(await response.json(), session.name);
  await turn.write(renewed);
  return renewed.access;
}

/** Another tab's renewal of the same session, if it is newer. */
function newer(session, shared) {
  const renewed = session && shared && shared.name === session.name && shared.at > session.at;
  return renewed ? shared : session;
}

/** What the last turn left for the next one. Where the browser has no such database, there is nothing. */
const turn = {
  open: () =>
    new Promise((resolve, reject) => {
      const opening = indexedDB.open("wrenn", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("turn");
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
    }),
  async run(mode, ask) {
    try {
      const database = await this.open();
      try {
        return await new Promise((resolve, reject) => {
          const transaction = database.transaction("turn", mode);
          const asked = ask(transaction.objectStore("turn"));
          transaction.oncomplete = () => resolve(asked.result);
          transaction.onabort = transaction.onerror = () => reject(transaction.error);
        });
      } finally {
        database.close();
      }
    } catch {
      return undefined;
    }
  },
  read() {
    return this.run("readonly", (store) => store.get("session"));
  },
  write(session) {
    return this.run("readwrite", (store) => store.put(session, "session"));
  },
};

let last = Promise.resolve();

/** One at a time: over all tabs where the browser can (it wants HTTPS or localhost for it), or in this one. */
function inTurn(task) {
  if (navigator.locks) return navigator.locks.request("wrenn.session", task);
  const next = last.then(task, task);
  last = next.catch(() => {});
  return next;
}
