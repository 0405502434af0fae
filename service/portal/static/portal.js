// Comforts for pages that work without this: live regions, relative times, copy buttons, menus, no double sending.

const body = document.body;
const REFRESH_HEADER = { "X-Refresh": "1" };
const RECONNECT_MS = 30_000;

// The viewer's time zone, for the next page that the server writes.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone && !document.cookie.includes(`deviceon-backup-zone=${zone}`)) {
  document.cookie = `deviceon-backup-zone=${zone}; path=/; max-age=31536000; samesite=lax`;
}

// Make `now` what `fresh` is, touching only what differs: focus, what was typed and open details stay.
function become(now, fresh) {
  if (now.isEqualNode(fresh)) return;
  if (now.nodeType !== fresh.nodeType || now.nodeName !== fresh.nodeName) {
    now.replaceWith(fresh);
    return;
  }
  if (now.nodeType !== Node.ELEMENT_NODE) {
    now.nodeValue = fresh.nodeValue;
    return;
  }
  if (now.matches("input, textarea, select") || now.hasAttribute("data-keep")) return; // somebody may be typing
  for (const { name } of [...now.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && now.nodeName === "DETAILS")) now.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (now.getAttribute(name) !== value && !(name === "open" && now.nodeName === "DETAILS")) {
      now.setAttribute(name, value);
    }
  }
  const left = new Map([...now.children].filter((child) => child.id).map((child) => [child.id, child]));
  let at = now.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const same = wanted.id ? left.get(wanted.id) : null;
    if (same && same !== at) {
      now.insertBefore(same, at);
      become(same, wanted);
    } else if (at && (same || (!at.id && !wanted.id && at.nodeName === wanted.nodeName))) {
      const next = at.nextSibling;
      become(at, wanted);
      at = next;
    } else {
      now.insertBefore(wanted, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

let refreshing = null;
let again = null;

function concerns(region, type) {
  return type === null || region.dataset.live.split(" ").some((word) => type.startsWith(word));
}

// Fetch this page anew and take over the regions that an event of this type concerns; null: all of them.
async function refresh(type) {
  const regions = [...document.querySelectorAll("[data-live]")].filter((region) => concerns(region, type));
  if (regions.length === 0) return;
  if (refreshing) {
    again = again === undefined ? type : again === type ? type : null;
    return;
  }
  refreshing = true;
  again = undefined;
  try {
    const answer = await fetch(location.href, { headers: REFRESH_HEADER, cache: "no-store" });
    if (answer.status === 401) {
      location.reload(); // the session is over: the server shows the login and then this page
      return;
    }
    if (!answer.headers.get("Content-Type")?.startsWith("text/html")) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const region of regions) {
      const fresh = page.getElementById(region.id);
      if (fresh) become(region, fresh);
    }
    tellTimes();
  } catch {
    // The portal cannot be reached; the events' reconnection tries again.
  } finally {
    refreshing = null;
    if (again !== undefined) {
      const wanted = again;
      again = undefined;
      setTimeout(() => refresh(wanted), 500);
    }
  }
}

// Events, while the page can be seen.
let source = null;
let retry = 0;
let missed = false;

function listen() {
  clearTimeout(retry);
  if (!body.dataset.events || document.hidden || source) return;
  source = new EventSource(body.dataset.events);
  source.addEventListener("open", () => {
    if (missed) refresh(null);
    missed = false;
  });
  source.addEventListener("change", (event) => {
    const { type } = JSON.parse(event.data);
    if (type === "portal.back" && document.querySelector("[data-reload-when-back]")) location.reload();
    else refresh(type === "portal.back" ? null : type);
  });
  source.addEventListener("reset", () => {
    if (document.querySelector("[data-reload-when-back]")) location.reload();
    else refresh(null);
  });
  source.addEventListener("error", () => {
    missed = true;
    if (source?.readyState === EventSource.CLOSED) {
      source = null; // refused: too many, or logged out
      retry = setTimeout(() => { refresh(null); listen(); }, RECONNECT_MS * (0.5 + Math.random()));
    }
  });
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source?.close();
    source = null;
    missed = true;
  } else {
    listen();
  }
});

// Relative times.
const relative = new Intl.RelativeTimeFormat(document.documentElement.lang, { numeric: "auto" });
const steps = [["second", 60], ["minute", 60], ["hour", 24], ["day", 30], ["month", 12], ["year", Infinity]];

function tellTimes() {
  for (const time of document.querySelectorAll("time[data-relative]")) {
    let amount = (Date.parse(time.dateTime) - Date.now()) / 1000;
    for (const [unit, most] of steps) {
      if (Math.abs(amount) < most) {
        const told = relative.format(Math.round(amount), unit);
        if (time.textContent !== told) time.textContent = told;
        break;
      }
      amount /= most;
    }
  }
}

// Copy buttons: <button data-copy="id of what is copied" hidden>
function showCopyButtons() {
  if (!navigator.clipboard) return;
  for (const button of document.querySelectorAll("button[data-copy][hidden]")) button.hidden = false;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("button[data-copy]");
  if (button) {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
    const word = button.textContent;
    button.textContent = button.dataset.copied || word;
    setTimeout(() => { button.textContent = word; }, 2000);
  }
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

// A form that is tried while it is filled in: <form data-try="ids of regions">, <button data-into="id of a region">.
// What comes back is the same page; only those regions are taken over. Passwords go only with a button.
async function tryForm(form, action, ids, button) {
  const fields = new URLSearchParams(new FormData(form));
  if (!button) for (const secret of form.querySelectorAll("input[type=password]")) fields.delete(secret.name);
  fields.set("action", action);
  const number = (form.tries = (form.tries ?? 0) + 1);
  const answer = await fetch(form.getAttribute("action"), { method: "POST", body: fields, headers: button ? {} : REFRESH_HEADER });
  if (answer.status === 401) location.reload();
  if (!answer.headers.get("Content-Type")?.startsWith("text/html") || (!button && number !== form.tries)) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of ids) {
    const fresh = page.getElementById(id);
    if (fresh) become(document.getElementById(id), fresh);
  }
  const failed = page.querySelector("main > [role=alert]");
  if (button && failed) document.getElementById(button.dataset.into).replaceChildren(failed);
}

let trying = 0;
for (const form of document.querySelectorAll("form[data-try]")) {
  form.addEventListener("input", () => {
    clearTimeout(trying);
    trying = setTimeout(() => tryForm(form, "preview", form.dataset.try.split(" ")).catch(() => {}), 400);
  });
  form.addEventListener("submit", async (event) => {
    const button = event.submitter;
    if (!button?.dataset.into) return;
    event.preventDefault();
    const word = button.textContent;
    button.textContent = button.dataset.busy;
    button.setAttribute("aria-disabled", "true");
    try {
      await tryForm(form, button.value, [button.dataset.into], button);
    } catch {
      // The portal cannot be reached; the page says so by itself.
    } finally {
      button.textContent = word;
      button.removeAttribute("aria-disabled");
    }
  });
}

// A select that goes on by itself: <select data-submit>; its button is for those without script.
document.addEventListener("change", (event) => {
  if (event.target.matches?.("select[data-submit]")) event.target.form.requestSubmit();
});

for (const button of document.querySelectorAll("button[data-without-script]")) button.hidden = true;

// A form is sent once; going back in history makes it usable again.
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post" || event.defaultPrevented) return;
  setTimeout(() => {
    for (const button of event.target.querySelectorAll("button")) button.disabled = true;
  });
});

addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const button of document.querySelectorAll("form[method=post] button:disabled")) button.disabled = false;
  refresh(null);
});

showCopyButtons();
tellTimes();
setInterval(tellTimes, 20_000);
listen();
