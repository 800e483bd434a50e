// Python, beside the page: a cell that takes long leaves the page alive.
// in: {id, source}    out: {state, text} while it starts, {id, shown} of a cell

import { loadPyodide } from "./pyodide/pyodide.mjs";

const here = (name) => new URL(name, import.meta.url).href;
const PACKAGES = ["numpy", "matplotlib"];

async function started() {
  postMessage({ state: "loading", text: "Python is loaded …" });
  const pyodide = await loadPyodide({ indexURL: here("pyodide/"), env: { MPLBACKEND: "agg", HOME: "/home/pyodide" } });
  postMessage({ state: "loading", text: "NumPy and matplotlib are loaded …" });
  await pyodide.loadPackage(PACKAGES, { messageCallback: () => {}, errorCallback: () => {} });
  pyodide.runPython("import os; os.umask(0o022)"); // it begins with 0o777: nobody could enter a folder made here
  const lacking = PACKAGES.filter((name) => !(name in pyodide.loadedPackages));
  if (lacking.length) throw new Error(`${lacking.join(" and ")} cannot be loaded from this site's folder pyodide/`);
  const { wheel } = await (await fetch(here("files.json"))).json();
  await pyodide.loadPackage(here(wheel), { messageCallback: () => {} });
  await pyodide.runPythonAsync(await (await fetch(here("session.py"))).text());
  await pyodide.runPythonAsync("import numgemma");
  postMessage({ state: "ready", text: "Python is ready: Shift+Enter runs a cell." });
  return pyodide.globals.get("run");
}

const lastLine = (error) => String(error.message ?? error).trim().split("\n").pop();

const run = started();
run.catch((error) => {
  const text = `This page cannot run: ${lastLine(error)}. Build it anew with "make lite".`;
  postMessage({ state: "failed", text });
});

onmessage = async ({ data: { id, source } }) => {
  try {
    postMessage({ id, shown: JSON.parse((await run)(source)) });
  } catch (error) {
    postMessage({ id, shown: [{ kind: "error", data: String(error) }] });
  }
};
