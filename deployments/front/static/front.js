// What plain HTML cannot do: "/" and Ctrl-K put the cursor into the search. Everything works without this file.
document.addEventListener("keydown", (event) => {
  const search = document.querySelector(".find input");
  if (!search) return;
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  const slash = event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey;
  const commandK = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k";
  if (slash || commandK) {
    event.preventDefault();
    search.focus();
    search.select();
  }
});
