"""The dialect of AUTOMATIC1111's Stable Diffusion WebUI: /sdapi/v1, over the same queue, limits and jobs."""
