// Runs before the first paint, so that a page in the chosen theme never flashes in the other one.
try {
  const theme = JSON.parse(localStorage.getItem("superdiff.theme"));
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Storage is forbidden: the system's theme holds.
}
